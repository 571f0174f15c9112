//! A corporate HTTP proxy: CONNECT with Basic credentials, nothing else. Whatever it is asked for, it
//! leads to one server, so that tests need no name service.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use crate::target::Target;

const DENIED: &[u8] = b"HTTP/1.1 407 Proxy Authentication Required\r\n\
    Proxy-Authenticate: Basic realm=\"corp\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// The proxy; remembers the authorities that it was asked for.
#[derive(Debug)]
pub struct ConnectProxy {
    proxy: Target,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Starts a proxy to `server` that wants these credentials (`user:password`), or none.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(server: SocketAddr, credentials: Option<&str>) -> Result<Self> {
        let wanted = credentials.map(|pair| format!("Basic {}", STANDARD.encode(pair)));
        let asked = Arc::new(Mutex::default());
        let log = Arc::clone(&asked);
        let proxy = Target::serve(move |near| connect(near, server, wanted.clone(), log.clone()));
        Ok(Self {
            proxy: proxy.await?,
            asked,
        })
    }

    /// Where the proxy listens.
    pub fn addr(&self) -> SocketAddr {
        self.proxy.addr()
    }

    /// The authorities of all CONNECT requests so far, granted or not.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

async fn connect(
    mut near: TcpStream,
    server: SocketAddr,
    wanted: Option<String>,
    asked: Arc<Mutex<Vec<String>>>,
) -> io::Result<u64> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.split(' ');
    let (Some("CONNECT"), Some(authority)) = (words.next(), words.next()) else {
        near.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            .await?;
        return Ok(0);
    };
    asked.lock().push(authority.to_owned());
    let given = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authorization")
            .then(|| value.trim())
    });
    if wanted.is_some() && given != wanted.as_deref() {
        near.write_all(DENIED).await?;
        return Ok(0);
    }
    let mut far = TcpStream::connect(server).await?;
    near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await?;
    copy_bidirectional(&mut near, &mut far)
        .await
        .map(|(up, _)| up)
}
