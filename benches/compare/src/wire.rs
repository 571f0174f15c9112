//! What load generator and target server say to each other: a greeting that names the job, and
//! payload of which every byte can be checked.

use std::io;
use std::sync::LazyLock;

/// Bytes of a greeting.
pub(crate) const GREETING: usize = 16;
/// Bytes of a bulk chunk, its header included.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Bytes of a chunk's header: flow seed and sequence number, little endian.
pub(crate) const CHUNK_HEADER: usize = 8;
/// Bit of the sequence number that marks a flow's last chunk.
pub(crate) const LAST: u32 = 1 << 31;
/// Bytes of a request and of its response in the request-response case.
pub(crate) const REQUEST: usize = 128;
pub(crate) const RESPONSE: usize = 512;
/// Bytes sent before, and answered after, a half-close.
pub(crate) const HALF_CLOSE_QUESTION: usize = 1024;
pub(crate) const HALF_CLOSE_ANSWER: usize = 64 * 1024;

/// What the target server shall do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Send back what comes.
    Echo,
    /// Take chunks until the last, then answer with their number (u64, little endian).
    Sink,
    /// Send chunks for as many milliseconds as the greeting's argument says.
    Source,
    /// Answer every [`REQUEST`] with a [`RESPONSE`].
    Answer,
    /// Read to the end of the stream, then answer.
    HalfClose,
    /// Say how many connections are open (u64, little endian).
    Count,
}

/// The first bytes of every connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Greeting {
    pub(crate) job: Job,
    /// Chooses the flow's payload.
    pub(crate) seed: u32,
    pub(crate) argument: u64,
}

impl Greeting {
    pub(crate) fn new(job: Job, seed: u32) -> Self {
        Self {
            job,
            seed,
            argument: 0,
        }
    }

    pub(crate) fn encode(self) -> [u8; GREETING] {
        let mut bytes = [0; GREETING];
        bytes[0] = match self.job {
            Job::Echo => b'E',
            Job::Sink => b'U',
            Job::Source => b'D',
            Job::Answer => b'Q',
            Job::HalfClose => b'H',
            Job::Count => b'C',
        };
        bytes[4..8].copy_from_slice(&self.seed.to_le_bytes());
        bytes[8..].copy_from_slice(&self.argument.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; GREETING]) -> io::Result<Self> {
        let job = match bytes[0] {
            b'E' => Job::Echo,
            b'U' => Job::Sink,
            b'D' => Job::Source,
            b'Q' => Job::Answer,
            b'H' => Job::HalfClose,
            b'C' => Job::Count,
            other => {
                return Err(io::Error::other(format!(
                    "unknown job {other:#x} in greeting"
                )));
            }
        };
        let [_, _, _, _, s0, s1, s2, s3, argument @ ..] = *bytes;
        Ok(Self {
            job,
            seed: u32::from_le_bytes([s0, s1, s2, s3]),
            argument: u64::from_le_bytes(argument),
        })
    }
}

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    // SplitMix64: no period and no run of equal bytes within the block.
    let mut state = 0x6e6f_7763_6f6e_6e65_u64;
    let mut block = Vec::with_capacity(4 * CHUNK);
    while block.len() < 4 * CHUNK {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        block.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    block
});

/// The payload that `seed` stands for; `length` at most [`CHUNK`]. Other seeds give other bytes, so
/// bytes that went astray between flows or within one are noticed.
pub(crate) fn payload(seed: u32, length: usize) -> &'static [u8] {
    let start = seed.wrapping_mul(0x9e37_79b1) as usize % (3 * CHUNK);
    &NOISE[start..start + length]
}

/// The seed of request number `number` of the flow `seed`.
pub(crate) fn request_seed(seed: u32, number: u32) -> u32 {
    seed.wrapping_mul(65_537).wrapping_add(number)
}

/// Fails unless `got` is what `seed` stands for.
pub(crate) fn check(seed: u32, got: &[u8]) -> io::Result<()> {
    if got == payload(seed, got.len()) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the payload came back altered",
    ))
}
