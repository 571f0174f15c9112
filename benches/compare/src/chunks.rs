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
