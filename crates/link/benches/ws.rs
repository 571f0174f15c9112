//! Our WebSocket codec against tungstenite's, in memory: what a message costs the CPU.
//!
//! `cargo bench -p nowconnect-link --bench ws`. Both sides copy what they send into a sink and
//! receive from a source that gives at most 64 KiB at a time, as a socket would. The contestants
//! take turns in many short rounds; a number is the fifth percentile of its rounds, those that
//! other load on the machine left alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a measurement, not a product

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use nowconnect_link::ws::{self, Batch, Decoder, Limits, Mask, Opcode, header, write_message};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

const READ: usize = 64 * 1024;
const LIMITS: Limits = Limits {
    max_frame: 1 << 20,
    max_message: 1 << 20,
};
const ROUNDS: usize = 201;
const ROUND_BYTES: usize = 64 << 20;
const ROUND_MESSAGES: usize = 64_000;

fn main() {
    println!("ns per message: tungstenite, ours, and how many times faster ours is");
    for (name, size, batch) in [("64 KiB", 65_536, 1), ("128 B, 32 at once", 128, 32)] {
        for (way, mask) in [
            ("client to server, random key", Mask::Random),
            ("client to server, zero key", Mask::Zero),
            ("server to client", Mask::None),
        ] {
            println!("\n{name}, {way}");
            let case = Case {
                payload: payload(size),
                batch,
                mask,
            };
            compare("encode", &case, Case::encode_theirs, Case::encode_ours);
            if batch > 1 {
                compare(
                    "encode, joined",
                    &case,
                    Case::encode_theirs,
                    Case::encode_joined,
                );
            }
            compare("decode", &case, Case::decode_theirs, Case::decode_ours);
        }
    }
}

/// Not zeros: a mask must change something.
fn payload(size: usize) -> Bytes {
    (0..size).map(|at| (at * 31 % 251) as u8).collect()
}

fn compare(what: &str, case: &Case, theirs: fn(&Case, usize), ours: fn(&Case, usize)) {
    let messages = (ROUND_BYTES / case.payload.len()).min(ROUND_MESSAGES) / case.batch * case.batch;
    let (mut their_times, mut our_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (work, times) in [(theirs, &mut their_times), (ours, &mut our_times)] {
            let start = Instant::now();
            work(case, messages);
            times.push(start.elapsed().as_nanos() as f64 / messages as f64);
        }
    }
    let (theirs, ours) = (undisturbed(their_times), undisturbed(our_times));
    println!(
        "  {what:<16} {theirs:>9.0} {ours:>9.0}   {:>5.2}",
        theirs / ours
    );
}

fn undisturbed(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 20]
}

struct Case {
    payload: Bytes,
    batch: usize,
    mask: Mask,
}

impl Case {
    fn encode_ours(&self, messages: usize) {
        let mut sink = Sink::default();
        let mut out = BytesMut::new();
        for _ in 0..messages / self.batch {
            if self.mask.is_transparent() && self.payload.len() > 4096 {
                // A vectored write: the payload is not copied before it leaves.
                let head = header(Opcode::Binary, self.payload.len(), self.mask.key());
                sink.write_all(&head).unwrap();
                sink.write_all(&self.payload).unwrap();
            } else {
                for _ in 0..self.batch {
                    write_message(&mut out, Opcode::Binary, &self.payload, self.mask);
                }
                sink.write_all(&out).unwrap();
                out.clear();
            }
            sink.flush().unwrap();
        }
    }

    /// As the links do it: one message of many parts.
    fn encode_joined(&self, messages: usize) {
        let mut sink = Sink::default();
        let mut out = BytesMut::new();
        for _ in 0..messages / self.batch {
            let batch = Batch::open(&mut out);
            for _ in 0..self.batch {
                out.extend_from_slice(&self.payload);
            }
            batch.seal(&mut out, Opcode::Binary, 0, self.mask);
            sink.write_all(&out).unwrap();
            out.clear();
            sink.flush().unwrap();
        }
    }

    fn encode_theirs(&self, messages: usize) {
        let role = if self.mask == Mask::None {
            Role::Server
        } else {
            Role::Client
        };
        let mut socket = WebSocket::from_raw_socket(Sink::default(), role, Some(config()));
        for _ in 0..messages / self.batch {
            for _ in 0..self.batch {
                socket.write(Message::Binary(self.payload.clone())).unwrap();
            }
            socket.flush().unwrap();
        }
    }

    fn decode_ours(&self, messages: usize) {
        let role = if self.mask == Mask::None {
            ws::Role::Client
        } else {
            ws::Role::Server
        };
        let mut source = self.source(messages);
        let mut decoder = Decoder::new(role, LIMITS);
        let mut buf = BytesMut::new();
        let mut decoded = 0;
        loop {
            buf.reserve(READ.max(decoder.missing(&buf)));
            let piece = source.next(READ);
            if piece.is_empty() {
                break;
            }
            buf.extend_from_slice(piece);
            while let Some(message) = decoder.decode(&mut buf).unwrap() {
                black_box(message);
                decoded += 1;
            }
        }
        assert_eq!(decoded, messages);
    }

    fn decode_theirs(&self, messages: usize) {
        let role = if self.mask == Mask::None {
            Role::Client
        } else {
            Role::Server
        };
        let mut socket = WebSocket::from_raw_socket(self.source(messages), role, Some(config()));
        let mut decoded = 0;
        loop {
            match socket.read() {
                Ok(message) => {
                    black_box(message);
                    decoded += 1;
                }
                Err(Error::Io(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(decoded, messages);
    }

    fn source(&self, messages: usize) -> Source {
        let mut wire = BytesMut::new();
        let repeat = (READ / self.payload.len()).max(1) * 4;
        for _ in 0..repeat {
            write_message(&mut wire, Opcode::Binary, &self.payload, self.mask);
        }
        let left = wire.len() / repeat * messages;
        Source {
            wire: wire.freeze(),
            at: 0,
            left,
        }
    }
}

/// Tungstenite at its best for this: a read buffer of the same size, frames within the limits.
fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ)
        .max_frame_size(Some(LIMITS.max_frame))
        .max_message_size(Some(LIMITS.max_message))
}

/// Takes bytes as the kernel does, by copying them.
#[derive(Default)]
struct Sink {
    taken: Vec<u8>,
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.taken.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        black_box(&self.taken);
        self.taken.clear();
        Ok(())
    }
}

impl Read for Sink {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// The same messages over and over.
struct Source {
    wire: Bytes,
    at: usize,
    left: usize,
}

impl Source {
    fn next(&mut self, most: usize) -> &[u8] {
        let size = most.min(self.left).min(self.wire.len() - self.at);
        let piece = &self.wire[self.at..self.at + size];
        self.at = (self.at + size) % self.wire.len();
        self.left -= size;
        piece
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let piece = self.next(buf.len().min(READ));
        if piece.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        buf[..piece.len()].copy_from_slice(piece);
        Ok(piece.len())
    }
}

impl Write for Source {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
