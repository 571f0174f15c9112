//! LDAP searches (RFC 4511).

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::closed_loop::{self, Exchange};
use super::{Sample, Subject};
use crate::failure::{Context, Failure, Result};
use crate::sockets;

// BER tags of the messages that are used, RFC 4511 section 4.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const BOOLEAN: u8 = 0x01;
const BIND: u8 = 0x60;
const BOUND: u8 = 0x61;
const SEARCH: u8 = 0x63;
const ENTRY: u8 = 0x64;
const DONE: u8 = 0x65;

/// Bytes of a message that a server may send; entries here have some hundreds.
const MAX_MESSAGE: usize = 1 << 20;

/// A search and the exact bytes of its answer. A message id may be used again once its search is
/// done (section 4.1.1.1), so with a fixed one every answer must be equal to the first.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    request: Arc<[u8]>,
    answer: Arc<[u8]>,
}

struct Connection {
    stream: TcpStream,
    search: Search,
    received: Vec<u8>,
}

pub(super) async fn measure(subject: &Subject<'_>, connections: usize) -> Result<Sample> {
    let search = subject.search.context("no LDAP server was started")?;
    let mut connected = Vec::new();
    for _ in 0..connections {
        connected.push(Connection::open(subject.entry, search).await?);
    }
    closed_loop::measure(subject, connected).await
}

impl Search {
    /// Asks `server` itself for all objects of `class` below `base`, `entries` of them.
    pub(crate) async fn record(
        server: SocketAddr,
        base: &str,
        class: &str,
        entries: usize,
    ) -> Result<Self> {
        let request = search_message(base, class);
        let mut stream = bind(server).await?;
        stream.write_all(&request).await.context("search")?;
        let (mut answer, mut found) = (Vec::new(), 0);
        loop {
            let (operation, message) = read_message(&mut stream).await.context("search answer")?;
            answer.extend_from_slice(&message);
            match operation {
                ENTRY => found += 1,
                DONE if found == entries => {
                    return Ok(Self {
                        request: request.into(),
                        answer: answer.into(),
                    });
                }
                other => {
                    let text = format!("LDAP answer {other:#x} after {found} of {entries} entries");
                    return Err(Failure::new(text));
                }
            }
        }
    }

    /// Fails unless the server at `entry` answers as the recorded one did.
    pub(crate) async fn check(&self, entry: SocketAddr) -> Result<()> {
        Connection::open(entry, self).await?.exchange().await
    }
}

impl Connection {
    async fn open(entry: SocketAddr, search: &Search) -> Result<Self> {
        let received = vec![0; search.answer.len()];
        Ok(Self {
            stream: bind(entry).await?,
            search: search.clone(),
            received,
        })
    }
}

impl Exchange for Connection {
    async fn exchange(&mut self) -> Result<()> {
        self.stream
            .write_all(&self.search.request)
            .await
            .context("search")?;
        self.stream
            .read_exact(&mut self.received)
            .await
            .context("search answer")?;
        if *self.received == *self.search.answer {
            return Ok(());
        }
        Err(Failure::new("the search answer came back altered"))
    }
}

/// Connects and binds anonymously (section 4.2).
async fn bind(server: SocketAddr) -> Result<TcpStream> {
    let mut stream = sockets::connect(server).await.context("connect")?;
    let version = element(INTEGER, &[&[3]]);
    let simple = element(0x80, &[]);
    let operation = element(BIND, &[&version, &element(OCTETS, &[]), &simple]);
    stream
        .write_all(&message(1, &operation))
        .await
        .context("bind")?;
    match read_message(&mut stream).await.context("bind answer")? {
        // The result code, success, is the first element of the response.
        (BOUND, message) if message.ends_with(&[ENUMERATED, 1, 0, OCTETS, 0, OCTETS, 0]) => {
            Ok(stream)
        }
        (operation, _) => Err(Failure::new(format!(
            "bind was answered with {operation:#x}"
        ))),
    }
}

/// Whole subtree, no limits, an equality filter on the object class, all attributes (section 4.5).
fn search_message(base: &str, class: &str) -> Vec<u8> {
    let filter = element(
        0xa3,
        &[
            &element(OCTETS, &[b"objectClass"]),
            &element(OCTETS, &[class.as_bytes()]),
        ],
    );
    let operation = element(
        SEARCH,
        &[
            &element(OCTETS, &[base.as_bytes()]),
            &element(ENUMERATED, &[&[2]]),
            &element(ENUMERATED, &[&[0]]),
            &element(INTEGER, &[&[0]]),
            &element(INTEGER, &[&[0]]),
            &element(BOOLEAN, &[&[0]]),
            &filter,
            &element(SEQUENCE, &[]),
        ],
    );
    message(2, &operation)
}

fn message(id: u8, operation: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[&element(INTEGER, &[&[id]]), operation])
}

fn element(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    // The four-octet long form is valid BER for any length.
    let mut bytes = vec![tag, 0x84];
    bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&content);
    bytes
}

/// The tag of a message's operation and all the message's bytes.
async fn read_message(stream: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut bytes = vec![0; 2];
    stream.read_exact(&mut bytes).await?;
    let mut length = usize::from(bytes[1]);
    if length >= 0x80 {
        let octets = length - 0x80;
        bytes.resize(2 + octets, 0);
        stream.read_exact(&mut bytes[2..]).await?;
        length = bytes[2..]
            .iter()
            .fold(0, |sum, octet| sum << 8 | usize::from(*octet));
    }
    if bytes[0] != SEQUENCE || length > MAX_MESSAGE {
        return Err(Failure::new("no LDAP message"));
    }
    let header = bytes.len();
    bytes.resize(header + length, 0);
    stream.read_exact(&mut bytes[header..]).await?;
    // Behind the message id, which this client keeps to one octet.
    let operation = bytes
        .get(header + 3)
        .copied()
        .context("LDAP message without operation")?;
    Ok((operation, bytes))
}
