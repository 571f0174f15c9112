//! Bytes inside the messages of a WebSocket: what TLS between hubs runs over.
#![allow(clippy::unwrap_used, reason = "a test")]

use bytes::BytesMut;
use nowconnect_link::stream::WsBytes;
use nowconnect_link::upgrade::Upgraded;
use nowconnect_link::ws::{Mask, Opcode, Role, write_close, write_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

fn over(io: DuplexStream, leftover: &[u8]) -> WsBytes<DuplexStream> {
    let upgraded = Upgraded {
        io,
        leftover: BytesMut::from(leftover),
        protocol: None,
    };
    WsBytes::new(upgraded, Role::Server)
}

fn message(opcode: Opcode, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    write_message(&mut out, opcode, payload, Mask::Random);
    out
}

#[tokio::test]
async fn bytes_arrive_in_order_whatever_the_pieces() {
    let (near, far) = duplex(1000);
    let client = Upgraded {
        io: near,
        leftover: BytesMut::new(),
        protocol: None,
    };
    let client = WsBytes::new(client, Role::Client);
    let sent: Vec<u8> = (0..500_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut client_in, mut client_out) = split(client);
    let (mut server_in, mut server_out) = split(over(far, b""));
    let up = async {
        for piece in sent.chunks(70_001) {
            client_out.write_all(piece).await.unwrap();
        }
        client_out.shutdown().await.unwrap();
    };
    let echo = async {
        let mut piece = vec![0; 3333];
        let mut seen = 0;
        while seen < sent.len() {
            let size = server_in.read(&mut piece).await.unwrap();
            server_out.write_all(&piece[..size]).await.unwrap();
            seen += size;
        }
        server_out.flush().await.unwrap();
        assert_eq!(
            server_in.read(&mut piece).await.unwrap(),
            0,
            "a close is an end"
        );
    };
    let down = async {
        let mut back = vec![0; sent.len()];
        client_in.read_exact(&mut back).await.unwrap();
        back
    };
    let (_, _, back) = tokio::join!(up, echo, down);
    assert!(back == sent);
}

#[tokio::test]
async fn what_came_with_the_upgrade_is_read_and_pings_are_answered() {
    let (mut near, far) = duplex(4096);
    let mut bytes = over(far, &message(Opcode::Binary, b"first"));
    let mut piece = [0; 16];
    assert_eq!(bytes.read(&mut piece).await.unwrap(), 5);
    near.write_all(&message(Opcode::Ping, b"?")).await.unwrap();
    near.write_all(&message(Opcode::Binary, b"second"))
        .await
        .unwrap();
    assert_eq!(bytes.read(&mut piece).await.unwrap(), 6);
    let mut pong = [0; 3];
    near.read_exact(&mut pong).await.unwrap();
    assert_eq!(pong, [0x8A, 1, b'?']);
}

#[tokio::test]
async fn what_is_no_bytes_ends_it() {
    let mut close = BytesMut::new();
    write_close(&mut close, 1000, "", Mask::Random);
    let piece = &mut [0; 16];
    assert_eq!(over(duplex(64).1, &close).read(piece).await.unwrap(), 0);
    let text = message(Opcode::Text, b"{}");
    let long = message(Opcode::Binary, &[0; 64 * 1024 + 1]);
    let bare = [0x82, 1, 0];
    for (bad, expected) in [
        (&text[..], "a text message"),
        (&long[..], "at most 65536"),
        (&bare[..], "must mask"),
    ] {
        let error = over(duplex(64).1, bad).read(piece).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
