//! A WebSocket to a hub that says only what the test says: an agent of the older generation, which
//! speaks JSON text frames, or a hostile one.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::wait::within;

/// The WebSocket, with nothing agreed but what the test says.
#[derive(Debug)]
pub struct RawTunnel {
    socket: WebSocketStream<TcpStream>,
}

impl RawTunnel {
    /// Upgrades without a subprotocol, as version 1 does; says nothing.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn dial(hub: SocketAddr, token: &str) -> Result<Self> {
        Self::dial_as(hub, token, None).await
    }

    /// Upgrades with a subprotocol, which the hub must accept; says nothing.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn dial_as(hub: SocketAddr, token: &str, protocol: Option<&str>) -> Result<Self> {
        let mut request = format!("ws://{hub}/tunnel").into_client_request()?;
        if let Some(protocol) = protocol {
            request
                .headers_mut()
                .insert("Sec-WebSocket-Protocol", protocol.parse()?);
        }
        let bearer = format!("Bearer {token}").parse().context("token")?;
        request.headers_mut().insert("Authorization", bearer);
        let stream = TcpStream::connect(hub).await?;
        stream.set_nodelay(true)?;
        let (socket, answer) = within("the upgrade", client_async(request, stream)).await??;
        let agreed = answer.headers().get("sec-websocket-protocol");
        ensure!(
            agreed.map(|value| value.as_bytes()) == protocol.map(str::as_bytes),
            "{answer:?}"
        );
        Ok(Self { socket })
    }

    /// Upgrades, says a version 1 HELLO and waits for the acknowledgement.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn connect(
        hub: SocketAddr,
        token: &str,
        agent_id: &str,
        connectors: &[&str],
    ) -> Result<Self> {
        let mut agent = Self::dial(hub, token).await?;
        let hello = json!({
            "t": "HELLO", "agent_id": agent_id, "connectors": connectors, "ver": "1.5",
        });
        agent.send(&hello).await?;
        let ack = agent.receive().await?;
        ensure!(ack["t"] == "HELLO_ACK", "{ack}");
        Ok(agent)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// When the WebSocket is broken.
    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_text(&frame.to_string()).await
    }

    /// Sends any text.
    ///
    /// # Errors
    /// When the WebSocket is broken.
    pub async fn send_text(&mut self, text: &str) -> Result<()> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// Sends payload of a flow.
    ///
    /// # Errors
    /// When the WebSocket is broken.
    pub async fn send_data(&mut self, cid: &str, seq: u64, bytes: &[u8]) -> Result<()> {
        let b64 = STANDARD.encode(bytes);
        self.send(&json!({ "t": "DATA", "cid": cid, "seq": seq, "b64": b64 }))
            .await
    }

    /// The next frame; pings are answered on the way.
    ///
    /// # Errors
    /// When the hub closes, or says nothing in time.
    pub async fn receive(&mut self) -> Result<Value> {
        within("a frame of the hub", self.next()).await?
    }

    async fn next(&mut self) -> Result<Value> {
        loop {
            match self.socket.next().await.context("the hub is gone")?? {
                Message::Text(text) => return Ok(serde_json::from_str(&text)?),
                Message::Ping(_) | Message::Pong(_) => {}
                other => bail!("not a version 1 frame: {other:?}"),
            }
        }
    }

    /// The next frame of this type; others are passed over.
    ///
    /// # Errors
    /// When the hub closes, or sends no such frame in time.
    pub async fn receive_type(&mut self, kind: &str) -> Result<Value> {
        loop {
            let frame = self.receive().await?;
            if frame["t"] == kind {
                return Ok(frame);
            }
        }
    }

    /// Reads until the hub has closed; returns the close code, if it gave one.
    ///
    /// # Errors
    /// When it does not close in time.
    pub async fn wait_closed(&mut self) -> Result<Option<u16>> {
        let mut code = None;
        loop {
            match within("the hub to close", self.socket.next()).await? {
                Some(Ok(Message::Close(frame))) => code = frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                None | Some(Err(_)) => return Ok(code),
            }
        }
    }
}

/// The payload of a DATA frame.
///
/// # Errors
/// When it has none.
pub fn payload(frame: &Value) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(frame["b64"].as_str().context("no payload")?)?)
}
