//! Keeps a server from sending more than any answer holds.
//!
//! The client library gathers an answer until it is complete, however long that takes. This stands
//! before it and counts along (RESP2 and RESP3, redis.io/docs/latest/develop/reference/protocol-spec):
//! an answer that is longer, deeper or of more parts than any that we ask for ends the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::tables::MAX_AGENTS;

/// Bytes of the longest answer: a table with all the agents that a hub can have.
const MOST_BYTES: u64 = 64 << 20;
/// Values of the longest answer: names and entries of all agents, and what else a table holds.
const MOST_VALUES: u64 = 2 * (MAX_AGENTS as u64 + 16);
/// Bytes of the longest single value: an entry or a notification, and then some.
const MOST_BULK: u64 = 1 << 20;
/// Bytes of the longest line, which an error message is.
const MOST_LINE: usize = 16 * 1024;
/// Lists within lists.
const MOST_DEEP: usize = 8;
/// What a line may say of itself: a type and a number.
const HEAD: usize = 24;

/// A connection that ends when the server sends too much.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    inner: S,
    scan: Scan,
}

impl<S> Bounded<S> {
    pub(super) fn new(inner: S) -> Self {
        let scan = Scan::default();
        Self { inner, scan }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let had = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let fresh = buf.filled().get(had..).unwrap_or_default();
        let verdict = self.scan.pass(fresh);
        Poll::Ready(verdict.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What a server must not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Excess {
    #[error("it is not the protocol of Redis")]
    Foreign,
    #[error("an answer of more than {MOST_BYTES} bytes, or a part of it of more than {MOST_BULK}")]
    TooLong,
    #[error("an answer of more than {MOST_VALUES} parts")]
    TooMany,
    #[error("lists within more than {MOST_DEEP} lists")]
    TooDeep,
}

/// Where in an answer the bytes are.
#[derive(Debug, Default)]
struct Scan {
    /// How the present line begins, and how long it is.
    head: Vec<u8>,
    line: usize,
    /// Bytes of a value that are yet to come; they are not lines.
    bulk: u64,
    /// How many values each open list lacks.
    lists: Vec<u64>,
    bytes: u64,
    values: u64,
}

impl Scan {
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Excess> {
        while !bytes.is_empty() {
            let taken = if self.bulk > 0 {
                let taken = bytes
                    .len()
                    .min(usize::try_from(self.bulk).unwrap_or(usize::MAX));
                self.bulk -= taken as u64;
                self.count(taken)?;
                if self.bulk == 0 {
                    self.value_ends();
                }
                taken
            } else {
                self.pass_line(bytes)?
            };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Result<(), Excess> {
        self.bytes += bytes as u64;
        if self.bytes > MOST_BYTES {
            return Err(Excess::TooLong);
        }
        Ok(())
    }

    /// Takes what belongs to the present line; returns how much that is.
    fn pass_line(&mut self, bytes: &[u8]) -> Result<usize, Excess> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        let room = HEAD.saturating_sub(self.head.len());
        self.head.extend(bytes.iter().take(taken.min(room)));
        self.line += taken;
        if self.line > MOST_LINE {
            return Err(Excess::TooLong);
        }
        self.count(taken)?;
        if end.is_some() {
            self.line = 0;
            let head = std::mem::take(&mut self.head);
            self.line_ends(&head)?;
        }
        Ok(taken)
    }

    fn line_ends(&mut self, head: &[u8]) -> Result<(), Excess> {
        let (kind, rest) = head.split_first().ok_or(Excess::Foreign)?;
        self.values += 1;
        if self.values > MOST_VALUES {
            return Err(Excess::TooMany);
        }
        match kind {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => self.value_ends(),
            b'$' | b'!' | b'=' => match number(rest)? {
                -1 => self.value_ends(),
                length => match u64::try_from(length) {
                    Ok(length) if length <= MOST_BULK => self.bulk = length + 2,
                    _ => return Err(Excess::TooLong),
                },
            },
            b'*' | b'~' | b'>' => self.list_begins(number(rest)?, 1)?,
            b'%' => self.list_begins(number(rest)?, 2)?,
            _ => return Err(Excess::Foreign),
        }
        Ok(())
    }

    fn list_begins(&mut self, length: i64, each: u64) -> Result<(), Excess> {
        let length = match u64::try_from(length) {
            Err(_) | Ok(0) => {
                self.value_ends();
                return Ok(());
            }
            Ok(length) => length.saturating_mul(each),
        };
        if length > MOST_VALUES {
            return Err(Excess::TooMany);
        }
        if self.lists.len() == MOST_DEEP {
            return Err(Excess::TooDeep);
        }
        self.lists.push(length);
        Ok(())
    }

    fn value_ends(&mut self) {
        while let Some(lacks) = self.lists.last_mut() {
            *lacks -= 1;
            if *lacks > 0 {
                return;
            }
            self.lists.pop();
        }
        self.bytes = 0;
        self.values = 0;
    }
}

/// The number behind a type; -1 is nothing at all.
fn number(text: &[u8]) -> Result<i64, Excess> {
    let text = text.strip_suffix(b"\r\n").ok_or(Excess::Foreign)?;
    let text = std::str::from_utf8(text).map_err(|_| Excess::Foreign)?;
    let number = text.parse().map_err(|_| Excess::Foreign)?;
    if number < -1 {
        Err(Excess::Foreign)
    } else {
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passed(bytes: &[u8]) -> Result<Scan, Excess> {
        let mut scan = Scan::default();
        scan.pass(bytes).map(|()| scan)
    }

    #[test]
    fn whole_answers_leave_nothing_behind() {
        for answer in [
            &b"+OK\r\n"[..],
            b"-ERR no\r\n",
            b"$-1\r\n",
            b"$5\r\nhe\nlo\r\n",
            b"*2\r\n:1\r\n*1\r\n$0\r\n\r\n",
            b"%1\r\n+a\r\n~2\r\n#t\r\n,1.5\r\n",
            b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
            b"*0\r\n",
            b"*-1\r\n_\r\n",
        ] {
            let scan = passed(answer).expect("well-formed");
            let left = (
                scan.bytes,
                scan.values,
                scan.bulk,
                scan.line,
                scan.lists.len(),
            );
            assert_eq!(left, (0, 0, 0, 0, 0), "{}", answer.escape_ascii());
        }
    }

    #[test]
    fn what_is_too_much_is_found_at_its_beginning() {
        for (answer, excess) in [
            (b"$1125899906842624\r\n".to_vec(), Excess::TooLong),
            (b"*4294967295\r\n".to_vec(), Excess::TooMany),
            (b"%70000000\r\n".to_vec(), Excess::TooMany),
            (b"*1\r\n".repeat(9), Excess::TooDeep),
            (b"$-2\r\n".to_vec(), Excess::Foreign),
            (b"HTTP/1.1 400\r\n".to_vec(), Excess::Foreign),
            (
                b"+".iter().chain(&[b'x'; MOST_LINE]).copied().collect(),
                Excess::TooLong,
            ),
        ] {
            assert_eq!(passed(&answer).err(), Some(excess));
        }
    }

    #[test]
    fn an_answer_of_many_bulks_is_bounded() {
        let mut scan = Scan::default();
        scan.pass(b"*1000\r\n").expect("few");
        let bulk = [&b"$1048576\r\n"[..], &vec![0; 1 << 20], b"\r\n"].concat();
        let passed = (0..1000).take_while(|_| scan.pass(&bulk).is_ok()).count();
        assert_eq!(passed, 63);
    }

    proptest! {
        /// How an answer is cut into reads changes nothing, and no bytes panic.
        #[test]
        fn cuts_do_not_matter(bytes in proptest::collection::vec(prop_oneof![
            Just(b'*'), Just(b'$'), Just(b'1'), Just(b'0'), Just(b'\r'), Just(b'\n'), any::<u8>(),
        ], 0..200), at in 0usize..200) {
            let (mut cut, at) = (Scan::default(), at.min(bytes.len()));
            let whole = passed(&bytes).map(|_| ());
            let parts = cut.pass(&bytes[..at]).and_then(|()| cut.pass(&bytes[at..]));
            prop_assert_eq!(whole, parts);
        }
    }
}
