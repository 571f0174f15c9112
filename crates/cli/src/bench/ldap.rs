//! An LDAP client (RFC 4511) that can do what a load needs: bind, search in pages, unbind.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use nowconnect_link::dial::{DialError, TcpOptions, dial_tcp};
use nowconnect_link::tls::CertificateFault;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::ber::{
    self, BOOLEAN, ENUMERATED, INTEGER, Malformed, OCTETS, Reader, SEQUENCE, element, number, of,
};

/// Results in pages (RFC 2696).
const PAGED_RESULTS: &[u8] = b"1.2.840.113556.1.4.319";
/// Pages of one search: a server that always has one more must not keep us.
const MAX_PAGES: usize = 100_000;

/// Where the server is and how it is reached.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    /// Whom to trust; `None` without TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// For connecting.
    pub(super) timeout: Duration,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Login {
    pub(super) dn: String,
    pub(super) password: String,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Search {
    pub(super) base: String,
    /// 0 the base alone, 1 one level, 2 the whole tree.
    pub(super) scope: u32,
    /// Encoded.
    pub(super) filter: Vec<u8>,
    /// Empty: all that users may see.
    pub(super) attributes: Vec<String>,
    /// Entries of a page; 0: everything at once.
    pub(super) page_size: u32,
}

/// Why there is no answer, or not a good one.
#[derive(Debug, thiserror::Error)]
pub(super) enum LdapError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("TLS failed: {error}; {}", tls_hint(.error))]
    Tls { error: std::io::Error },
    #[error("'{0}' is no name that a certificate can be for")]
    Name(String),
    #[error("the connection broke: {0}{more}", more = BEHIND_A_HUB)]
    Io(#[from] std::io::Error),
    #[error("the server closed the connection{more}", more = BEHIND_A_HUB)]
    Closed,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{what} was refused: {} ({code}){}{}", code_name(*.code), detail(.text), hint(what, *.code))]
    Refused {
        what: &'static str,
        code: u32,
        text: String,
    },
}

impl LdapError {
    /// Whether the connection can be used on.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { what, .. } if *what != DISCONNECTION)
    }
}

const DISCONNECTION: &str = "the connection";
const BIND: &str = "the bind";
/// A hub takes a client before it knows whether anybody serves it.
const BEHIND_A_HUB: &str = "; behind a hub: nowconnect path CONNECTOR says whether an agent is there, \
                            and the agent's log whether its target is";

fn tls_hint(error: &std::io::Error) -> &'static str {
    match CertificateFault::of_io(error) {
        Some(CertificateFault::UnknownCa) => "if the server's CA is private, name it with --ca",
        Some(CertificateFault::WrongName) => "give --host a name that its certificate is for",
        Some(_) => "the server needs another certificate",
        None => "does that port speak TLS? It is usually 636; without --ssl, 389",
    }
}

fn detail(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

/// RFC 4511 section 4.1.9.
fn code_name(code: u32) -> &'static str {
    match code {
        1 => "operationsError",
        2 => "protocolError",
        3 => "timeLimitExceeded",
        4 => "sizeLimitExceeded",
        7 => "authMethodNotSupported",
        8 => "strongerAuthRequired",
        10 => "referral",
        11 => "adminLimitExceeded",
        12 => "unavailableCriticalExtension",
        13 => "confidentialityRequired",
        32 => "noSuchObject",
        34 => "invalidDNSyntax",
        48 => "inappropriateAuthentication",
        49 => "invalidCredentials",
        50 => "insufficientAccessRights",
        51 => "busy",
        52 => "unavailable",
        53 => "unwillingToPerform",
        _ => "result",
    }
}

fn hint(what: &str, code: u32) -> &'static str {
    match code {
        34 if what == BIND => "; check --bind-dn",
        4 => "; ask for pages with --page-size",
        8 | 13 => "; the server wants TLS: --ssl and its port",
        12 => "; the server knows no pages: --page-size 0",
        32 | 34 => "; check --base-dn",
        49 => "; check --bind-dn and the password",
        _ => "",
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection to a server. An operation that is dropped half way leaves it useless.
pub(super) struct Client {
    io: Box<dyn Io>,
    input: BytesMut,
    last_id: u32,
}

impl Client {
    /// Connects and, with a login, binds.
    pub(super) async fn connect(server: &Server, login: &Login) -> Result<Self, LdapError> {
        let options = TcpOptions::default();
        let tcp = dial_tcp(&server.host, server.port, server.timeout, options).await?;
        let io: Box<dyn Io> = match &server.tls {
            None => Box::new(tcp),
            Some(config) => {
                let name = ServerName::try_from(server.host.clone())
                    .map_err(|_| LdapError::Name(server.host.clone()))?;
                let tls = TlsConnector::from(Arc::clone(config));
                Box::new(
                    tls.connect(name, tcp)
                        .await
                        .map_err(|error| LdapError::Tls { error })?,
                )
            }
        };
        let mut client = Self {
            io,
            input: BytesMut::new(),
            last_id: 0,
        };
        client.bind(login).await?;
        Ok(client)
    }

    async fn bind(&mut self, login: &Login) -> Result<(), LdapError> {
        let request = of(
            0x60,
            &[
                number(INTEGER, 3),
                element(OCTETS, login.dn.as_bytes()),
                element(0x80, login.password.as_bytes()),
            ],
        );
        let id = self.send(request, None).await?;
        let message = self.receive(id).await?;
        let mut reader = Reader(&message);
        let (tag, result) = operation(&mut reader)?;
        match tag {
            0x61 => check(BIND, result),
            _ => Err(Malformed("a bind has another answer").into()),
        }
    }

    /// Searches, page by page; returns how many entries came.
    pub(super) async fn search(&mut self, search: &Search) -> Result<u64, LdapError> {
        let mut entries = 0;
        let mut cookie = Vec::new();
        for _ in 0..MAX_PAGES {
            cookie = self.page(search, &cookie, &mut entries).await?;
            if cookie.is_empty() {
                return Ok(entries);
            }
        }
        Err(Malformed("a search has no end").into())
    }

    async fn page(
        &mut self,
        search: &Search,
        cookie: &[u8],
        entries: &mut u64,
    ) -> Result<Vec<u8>, LdapError> {
        let controls = (search.page_size > 0).then(|| paging(search.page_size, cookie));
        let id = self.send(request(search), controls).await?;
        loop {
            let message = self.receive(id).await?;
            let mut reader = Reader(&message);
            let (tag, content) = operation(&mut reader)?;
            match tag {
                0x64 => *entries += 1,
                0x73 => {}
                0x65 => {
                    check("the search", content)?;
                    return Ok(next_cookie(reader)?);
                }
                _ => return Err(Malformed("a search has another answer").into()),
            }
        }
    }

    /// Says good-bye.
    pub(super) async fn unbind(mut self) {
        let _ = self.send(element(0x42, &[]), None).await;
        let _ = self.io.shutdown().await;
    }

    async fn send(
        &mut self,
        operation: Vec<u8>,
        controls: Option<Vec<u8>>,
    ) -> Result<u32, LdapError> {
        // The highest id is 2^31 - 1, and 0 is the server's.
        self.last_id = self.last_id % 0x7fff_ffff + 1;
        let id = number(INTEGER, self.last_id);
        let message = of(SEQUENCE, &[id, operation, controls.unwrap_or_default()]);
        self.io.write_all(&message).await?;
        self.io.flush().await?;
        Ok(self.last_id)
    }

    /// The content of the next message that answers `id`.
    async fn receive(&mut self, id: u32) -> Result<BytesMut, LdapError> {
        let message = self.message().await?;
        let mut reader = Reader(&message);
        match reader.number(INTEGER)? {
            found if found == id => Ok(message),
            // Notice of disconnection (RFC 4511 section 4.4.1).
            0 => {
                let (_, content) = reader.next()?.ok_or(Malformed("a notice is empty"))?;
                check(DISCONNECTION, content)?;
                Err(LdapError::Closed)
            }
            _ => Err(Malformed("an answer has no question").into()),
        }
    }

    async fn message(&mut self) -> Result<BytesMut, LdapError> {
        loop {
            if let Some(len) = ber::message_len(&self.input)? {
                if self.input.len() >= len {
                    let whole = self.input.split_to(len);
                    let content = Reader(&whole).expect(SEQUENCE)?.0.len();
                    return Ok(BytesMut::from(&whole[len - content..]));
                }
                self.input.reserve(len - self.input.len());
            }
            if self.input.capacity() == self.input.len() {
                self.input.reserve(16 * 1024);
            }
            if self.io.read_buf(&mut self.input).await? == 0 {
                return Err(LdapError::Closed);
            }
        }
    }
}

fn request(search: &Search) -> Vec<u8> {
    let attributes = search.attributes.iter();
    let attributes: Vec<_> = attributes
        .map(|name| element(OCTETS, name.as_bytes()))
        .collect();
    of(
        0x63,
        &[
            element(OCTETS, search.base.as_bytes()),
            number(ENUMERATED, search.scope),
            // Aliases stay aliases; no limit of size and time; values, not only types.
            number(ENUMERATED, 0),
            number(INTEGER, 0),
            number(INTEGER, 0),
            element(BOOLEAN, &[0]),
            search.filter.clone(),
            of(SEQUENCE, &attributes),
        ],
    )
}

fn paging(size: u32, cookie: &[u8]) -> Vec<u8> {
    let value = of(SEQUENCE, &[number(INTEGER, size), element(OCTETS, cookie)]);
    let control = [
        element(OCTETS, PAGED_RESULTS),
        element(BOOLEAN, &[0xff]),
        element(OCTETS, &value),
    ];
    of(0xa0, &[of(SEQUENCE, &control)])
}

/// Past the id: the operation. What is left are the controls.
fn operation<'a>(message: &mut Reader<'a>) -> Result<(u8, Reader<'a>), Malformed> {
    message.number(INTEGER)?;
    message.next()?.ok_or(Malformed("a message is empty"))
}

fn check(what: &'static str, mut result: Reader<'_>) -> Result<(), LdapError> {
    let code = result.number(ENUMERATED)?;
    result.expect(OCTETS)?;
    let text = String::from_utf8_lossy(result.expect(OCTETS)?.0);
    // For a terminal and a report: one line, not too long.
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    match code {
        0 => Ok(()),
        code => Err(LdapError::Refused { what, code, text }),
    }
}

/// Where the next page begins; empty after the last.
fn next_cookie(mut rest: Reader<'_>) -> Result<Vec<u8>, Malformed> {
    let Some((0xa0, mut controls)) = rest.next()? else {
        return Ok(Vec::new());
    };
    while let Some((_, mut control)) = controls.next()? {
        if control.expect(OCTETS)?.0 != PAGED_RESULTS {
            continue;
        }
        while let Some((tag, value)) = control.next()? {
            if tag == OCTETS {
                let mut value = { value }.expect(SEQUENCE)?;
                value.expect(INTEGER)?;
                return Ok(value.expect(OCTETS)?.0.to_vec());
            }
        }
    }
    Ok(Vec::new())
}
