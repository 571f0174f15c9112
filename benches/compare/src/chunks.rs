//! Bulk data: chunks that carry their flow's seed and a running number, over a blocking socket
//! (one thread and one large buffer per flow is the cheapest way to move bytes).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::wire::{CHUNK, CHUNK_HEADER, LAST, check, payload};

/// Sends chunks until `until` has passed; the last one is marked. Returns their number.
pub(crate) fn send(stream: &mut TcpStream, seed: u32, until: Instant) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    chunk[..4].copy_from_slice(&seed.to_le_bytes());
    chunk[CHUNK_HEADER..].copy_from_slice(payload(seed, CHUNK - CHUNK_HEADER));
    let mut number = 0_u32;
    loop {
        let last = Instant::now() >= until;
        let mark = if last { number | LAST } else { number };
        chunk[4..CHUNK_HEADER].copy_from_slice(&mark.to_le_bytes());
        stream.write_all(&chunk)?;
        number += 1;
        if last {
            return Ok(u64::from(number));
        }
    }
}

/// Receives chunks up to the marked one and checks every byte. Returns their number.
pub(crate) fn receive(stream: &mut TcpStream, seed: u32) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut number = 0_u32;
    loop {
        stream.read_exact(&mut chunk)?;
        let (header, body) = chunk.split_at(CHUNK_HEADER);
        let mark = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        if header[..4] != seed.to_le_bytes() || mark & !LAST != number {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a chunk is out of place",
            ));
        }
        check(seed, body)?;
        number += 1;
        if mark & LAST != 0 {
            return Ok(u64::from(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const SEED: u32 = 7;

    /// What the receiver makes of chunks with these numbers and a change at one place.
    fn received(marks: &[u32], seed: u32, change: Option<usize>) -> io::Result<u64> {
        let mut bytes = Vec::new();
        for mark in marks {
            bytes.extend_from_slice(&SEED.to_le_bytes());
            bytes.extend_from_slice(&mark.to_le_bytes());
            bytes.extend_from_slice(payload(SEED, CHUNK - CHUNK_HEADER));
        }
        if let Some(place) = change {
            bytes[place] ^= 1;
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut sender = TcpStream::connect(listener.local_addr()?)?;
        let (mut receiver, _) = listener.accept()?;
        std::thread::scope(|scope| {
            scope.spawn(move || sender.write_all(&bytes).ok());
            let outcome = receive(&mut receiver, seed);
            drop(receiver);
            outcome
        })
    }

    #[test]
    fn chunks_in_order_arrive() {
        assert_eq!(received(&[0, 1, 2 | LAST], SEED, None).ok(), Some(3));
    }

    #[test]
    fn lost_doubled_foreign_and_altered_bytes_are_noticed() {
        assert!(received(&[0, 2 | LAST], SEED, None).is_err(), "lost");
        assert!(received(&[0, 0, 1 | LAST], SEED, None).is_err(), "doubled");
        assert!(received(&[0, 1], SEED, None).is_err(), "cut short");
        assert!(received(&[LAST], SEED + 1, None).is_err(), "another flow's");
        assert!(received(&[LAST], SEED, Some(CHUNK - 1)).is_err(), "altered");
    }
}
