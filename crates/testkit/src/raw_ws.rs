//! A WebSocket written by hand: for peers that keep to no rule, on either side of the connection.
//!
//! Nothing is checked and nothing is answered unless the caller says so, except the PINGs of protocol
//! version 2, without whose PONGs a link would end for another reason than the one under test.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::http;
use crate::wait::within;

const PING: u8 = 0x07;
const PONG: u8 = 0x08;
const HEADER: usize = 9;

/// Opcodes of RFC 6455 section 5.2.
pub mod opcode {
    #![allow(missing_docs)]
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// One frame of protocol version 2, as `docs/protocol.md` lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V2Frame {
    /// Its type.
    pub kind: u8,
    /// The flow that it names.
    pub flow: u32,
    /// What it carries.
    pub body: Vec<u8>,
}

impl V2Frame {
    /// The body as a number of 16 bits, which is where reasons stand.
    #[must_use]
    pub fn reason(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.body.get(..2)?.try_into().ok()?))
    }
}

/// The bytes of one frame of protocol version 2.
#[must_use]
pub fn v2(kind: u8, flow: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, 0]);
    frame.extend_from_slice(&flow.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// How the other side ended it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Closed {
    /// The code of its close frame, if it sent one.
    pub code: Option<u16>,
    /// The reason in it.
    pub reason: String,
}

/// A WebSocket over any stream.
#[derive(Debug)]
pub struct RawWs<S = TcpStream> {
    io: S,
    masks: bool,
    input: Vec<u8>,
    frames: Vec<u8>,
}

impl RawWs {
    /// Upgrades at `/tunnel` with a token; `protocol` is the subprotocol to ask for.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn tunnel(hub: SocketAddr, token: &str, protocol: Option<&str>) -> Result<Self> {
        let bearer = format!("Bearer {token}");
        let mut headers = http::upgrade_headers(&bearer);
        headers.retain(|(name, _)| *name != "Sec-WebSocket-Protocol");
        headers.extend(protocol.map(|protocol| ("Sec-WebSocket-Protocol", protocol)));
        Self::open(hub, "/tunnel", &headers).await
    }

    /// Upgrades at `/mesh` without any proof.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn mesh(hub: SocketAddr) -> Result<Self> {
        let mut headers = http::upgrade_headers("");
        headers.retain(|(name, _)| !["Authorization", "Sec-WebSocket-Protocol"].contains(name));
        headers.push(("Sec-WebSocket-Protocol", "nowconnect.mesh.v1"));
        Self::open(hub, "/mesh", &headers).await
    }

    /// Upgrades at any path.
    ///
    /// # Errors
    /// When the answer is not 101.
    pub async fn open(to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let stream = within("a connection", TcpStream::connect(to)).await??;
        stream.set_nodelay(true)?;
        Self::open_over(stream, path, headers).await
    }

    /// Waits for somebody who dials, and answers as a server that speaks `protocol`.
    ///
    /// # Errors
    /// When nobody dials, or not for a WebSocket.
    pub async fn accept(stream: TcpStream, protocol: Option<&str>) -> Result<Self> {
        let mut ws = Self {
            io: stream,
            masks: false,
            input: Vec::new(),
            frames: Vec::new(),
        };
        let head = ws.read_head().await?;
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key")
                .then(|| value.trim().to_owned())
        });
        let accept = derive_accept_key(key.context("no key")?.as_bytes());
        let protocol = protocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{}\r\n",
            protocol.unwrap_or_default()
        );
        ws.write(answer.as_bytes()).await?;
        Ok(ws)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawWs<S> {
    /// Upgrades over a stream that is there already.
    ///
    /// # Errors
    /// When the answer is not 101.
    pub async fn open_over(stream: S, path: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let mut ws = Self {
            io: stream,
            masks: true,
            input: Vec::new(),
            frames: Vec::new(),
        };
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: hub\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += "\r\n";
        ws.write(request.as_bytes()).await?;
        let head = ws.read_head().await?;
        ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
        Ok(ws)
    }

    async fn read_head(&mut self) -> Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("an HTTP head", self.io.read_u8()).await??);
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// Sends one frame whose first byte (FIN, reserved bits, opcode) is `first`.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(payload.len() + 14);
        put_frame(&mut bytes, self.masks, first, payload);
        self.write(&bytes).await
    }

    /// Sends a binary message.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn binary(&mut self, payload: &[u8]) -> io::Result<()> {
        self.send(0x80 | opcode::BINARY, payload).await
    }

    /// Sends a text.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn text(&mut self, text: &str) -> io::Result<()> {
        self.send(0x80 | opcode::TEXT, text.as_bytes()).await
    }

    /// The next frame of the WebSocket; `None` at its end, in order or not.
    ///
    /// # Errors
    /// When nothing comes in time.
    pub async fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some((opcode, payload, used)) = parse_frame(&self.input) {
                self.input.drain(..used);
                return Ok(Some((opcode, payload)));
            }
            let mut chunk = [0; 16 * 1024];
            match within("the other side to speak", self.io.read(&mut chunk)).await? {
                Ok(0) | Err(_) => return Ok(None),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// The next text as JSON.
    ///
    /// # Errors
    /// When the other side closes, or says nothing in time.
    pub async fn receive_json(&mut self) -> Result<serde_json::Value> {
        loop {
            match self.receive().await? {
                Some((opcode::TEXT, text)) => return Ok(serde_json::from_slice(&text)?),
                Some((opcode::CLOSE, payload)) => bail!("closed: {:?}", parse_close(&payload)),
                Some(_) => {}
                None => bail!("the connection ended"),
            }
        }
    }

    /// The next frame of version 2 that is no keepalive; PINGs are answered.
    ///
    /// # Errors
    /// When the other side closes, or says nothing in time.
    pub async fn frame(&mut self) -> Result<V2Frame> {
        loop {
            if let Some(frame) = take_v2(&mut self.frames) {
                match frame.kind {
                    PING => {
                        let pong = v2(PONG, 0, &frame.body);
                        self.binary(&pong).await?;
                    }
                    PONG => {}
                    _ => return Ok(frame),
                }
                continue;
            }
            match self.receive().await? {
                Some((opcode::BINARY, bytes)) => self.frames.extend(bytes),
                Some((opcode::CLOSE, payload)) => bail!("closed: {:?}", parse_close(&payload)),
                Some(_) => {}
                None => bail!("the connection ended"),
            }
        }
    }

    /// The next frame of version 2 of this type; others are passed over.
    ///
    /// # Errors
    /// When the other side closes, or sends none in time.
    pub async fn frame_of(&mut self, kind: u8) -> Result<V2Frame> {
        let next = async {
            loop {
                let frame = self.frame().await?;
                if frame.kind == kind {
                    return Ok(frame);
                }
            }
        };
        within(&format!("a frame of type {kind:#04x}"), next).await?
    }

    /// Reads until the other side has ended the connection.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn closed(&mut self) -> Result<Closed> {
        let end = async {
            let mut closed = Closed::default();
            while let Some((opcode, payload)) = self.receive().await? {
                if opcode == opcode::CLOSE {
                    closed = parse_close(&payload);
                }
            }
            Ok(closed)
        };
        within("the other side to close", end).await?
    }

    /// The stream underneath.
    pub fn stream(&mut self) -> &mut S {
        &mut self.io
    }
}

/// Appends one WebSocket frame, masked or not.
pub fn put_frame(out: &mut Vec<u8>, masked: bool, first: u8, payload: &[u8]) {
    const KEY: [u8; 4] = [0x5a, 1, 0xa5, 2];
    let mask = if masked { 0x80 } else { 0 };
    out.push(first);
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => out.push(mask | u8::try_from(length).unwrap_or_default()),
        Ok(length) => {
            out.push(mask | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            out.push(mask | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    if !masked {
        return out.extend_from_slice(payload);
    }
    out.extend_from_slice(&KEY);
    let masked = payload.iter().zip(KEY.iter().cycle());
    out.extend(masked.map(|(byte, key)| byte ^ key));
}

fn parse_frame(input: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (first, second) = (*input.first()?, *input.get(1)?);
    let (length, mut at) = match second & 0x7f {
        126 => (
            usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?)),
            4,
        ),
        127 => {
            let length = u64::from_be_bytes(input.get(2..10)?.try_into().ok()?);
            (usize::try_from(length).ok()?, 10)
        }
        short => (usize::from(short), 2),
    };
    let key = if second & 0x80 != 0 {
        at += 4;
        input.get(at - 4..at)?
    } else {
        &[0]
    };
    let payload = input.get(at..at + length)?;
    let plain = payload.iter().zip(key.iter().cycle());
    let plain = plain.map(|(byte, key)| byte ^ key).collect();
    Some((first & 0x0f, plain, at + length))
}

fn take_v2(bytes: &mut Vec<u8>) -> Option<V2Frame> {
    let head = bytes.get(..HEADER)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let kind = head[3];
    let flow = u32::from_be_bytes(head[5..9].try_into().ok()?);
    let body = bytes.get(HEADER..HEADER + length)?.to_vec();
    bytes.drain(..HEADER + length);
    Some(V2Frame { kind, flow, body })
}

fn parse_close(payload: &[u8]) -> Closed {
    let code = payload.get(..2).and_then(|code| code.try_into().ok());
    let reason = payload.get(2..).unwrap_or_default();
    Closed {
        code: code.map(u16::from_be_bytes),
        reason: String::from_utf8_lossy(reason).into_owned(),
    }
}
