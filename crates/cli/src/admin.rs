//! A client of a hub's admin API, for the commands that use it.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nowconnect_link::dial::{Dialer, ProxyRules, TcpOptions, WsUrl};
use nowconnect_link::tls::{ClientFiles, LiveClientConfig, Roots};
use serde_json::Value;
use tokio::time::timeout;

use crate::cells::silent;
use crate::failure::Failure;
use crate::private_file;

/// A hub on this machine has answered long before; one that reloads may wait for a name server.
const DEADLINE: Duration = Duration::from_secs(30);
/// Until there is a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of the largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Bytes of the longest token file that is read, as the hub has it.
const MAX_TOKEN: u64 = 4096;

/// Which hub, and how to be let in
#[derive(Debug, clap::Args)]
pub(crate) struct Access {
    /// Address of the hub's admin API (its admin.bind)
    #[arg(
        long,
        value_name = "URL",
        env = "NC_ADMIN_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8766"
    )]
    url: String,
    /// File with the token of the admin API (the hub's admin.token_file)
    #[arg(
        long,
        value_name = "FILE",
        env = "NC_ADMIN_TOKEN_FILE",
        hide_env_values = true
    )]
    token_file: Option<PathBuf>,
    /// CA certificates to trust for https:// besides the system's
    #[arg(long, value_name = "FILE")]
    ca_bundle: Option<PathBuf>,
}

/// A hub's admin API.
pub(crate) struct Admin {
    shown: String,
    url: WsUrl,
    dialer: Dialer,
    bearer: Option<HeaderValue>,
}

impl Admin {
    /// Checks the arguments; connects to nobody yet.
    ///
    /// # Errors
    /// The URL or a file cannot be used.
    pub(crate) fn new(access: &Access) -> Result<Self, Failure> {
        Self::prepare(access).map_err(Failure::usage)
    }

    fn prepare(access: &Access) -> anyhow::Result<Self> {
        let url = parse_url(&access.url)?;
        let dialer = dialer(&url, access.ca_bundle.as_ref())?;
        Ok(Self {
            shown: access.url.trim_end_matches('/').to_owned(),
            url,
            dialer,
            bearer: access.token_file.as_ref().map(bearer).transpose()?,
        })
    }

    /// The address as it was given.
    pub(crate) fn url(&self) -> &str {
        &self.shown
    }

    /// Whether anybody takes connections at the address.
    pub(crate) async fn is_reachable(&self) -> bool {
        self.dialer.dial(&self.url).await.is_ok()
    }

    /// Reads `/api/v1/{path}`.
    ///
    /// # Errors
    /// Nobody answers, or the hub refuses.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None).await
    }

    /// Acts on `/api/v1/{path}`.
    ///
    /// # Errors
    /// Nobody answers, or the hub refuses.
    pub(crate) async fn post(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, None).await
    }

    /// Acts on `/api/v1/{path}` with a JSON body.
    ///
    /// # Errors
    /// Nobody answers, or the hub refuses.
    pub(crate) async fn post_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// The pages of the list `what` as one, from `cursor` on: all of them, or the first that has
    /// something on it.
    pub(crate) async fn pages(
        &self,
        what: &str,
        keys: &[(&str, Option<&str>)],
        mut cursor: Option<String>,
        all: bool,
    ) -> anyhow::Result<Value> {
        let mut entries = Vec::new();
        loop {
            let keys = [keys, &[("cursor", cursor.as_deref())]].concat();
            let mut page = self.get(&query(what, &keys)).await?;
            let Value::Array(more) = page[what].take() else {
                bail!("the hub's answer has no {what}: is it of the same version?");
            };
            entries.extend(more);
            let next = page["next"].as_str().map(str::to_owned);
            if next.is_none() || !(all || entries.is_empty()) {
                page[what] = entries.into();
                return Ok(page);
            }
            ensure!(next > cursor, "the hub repeats a page");
            cursor = next;
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let answered = timeout(DEADLINE, self.send(method, path, body)).await;
        let (status, body) = answered
            .map_err(|_| anyhow!("no complete answer within {} s", DEADLINE.as_secs()))
            .flatten()
            .with_context(|| {
                format!(
                    "no hub answers at {} (--url must be its admin.bind)",
                    self.shown
                )
            })?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| {
            anyhow!(
                "{} answers {status}, but not as a hub's admin API does; --url must be its \
                 admin.bind",
                self.shown
            )
        })?;
        if status.is_success() {
            return Ok(answer);
        }
        Err(refusal(status, &answer, self.bearer.is_some()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let content = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::new(Full::<Bytes>::from(content));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::try_from(format!("/api/v1/{path}"))?;
        let headers = request.headers_mut();
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(bearer) = &self.bearer {
            headers.insert(AUTHORIZATION, bearer.clone());
        }
        exchange(&self.dialer, &self.url, request).await
    }
}

/// Who dials `url`, trusting the system's CA certificates and those of `ca_bundle`.
///
/// # Errors
/// CA certificates cannot be read.
pub(crate) fn dialer(url: &WsUrl, ca_bundle: Option<&PathBuf>) -> anyhow::Result<Dialer> {
    let roots = match ca_bundle {
        Some(bundle) => Roots::SystemAnd(bundle.clone()),
        None => Roots::System,
    };
    let files = ClientFiles {
        roots,
        identity: None,
    };
    let tls = url
        .is_tls()
        .then(|| LiveClientConfig::load(files).map(|live| live.current()));
    Ok(Dialer {
        tls: tls.transpose()?,
        proxies: ProxyRules::none(),
        timeout: CONNECT_DEADLINE,
        tcp: TcpOptions::default(),
    })
}

/// Sends `request` over a connection of its own, and reads the answer.
///
/// # Errors
/// Nobody answers, or the answer breaks off.
pub(crate) async fn exchange(
    dialer: &Dialer,
    url: &WsUrl,
    mut request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let io = dialer.dial(url).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::try_from(url.authority())?);
    let agent = concat!("nowconnect/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    let answer = async {
        let answer = sender.send_request(request).await.map_err(no_http)?;
        read(answer).await
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.map_err(no_http)?;
            answer.await
        }
    }
}

/// A port that speaks TLS answers plain HTTP with an alert.
fn no_http(error: hyper::Error) -> anyhow::Error {
    match error.is_parse() {
        true => anyhow!("the answer is not HTTP: if that port speaks TLS, the URL is https://"),
        false => error.into(),
    }
}

/// `path` with those `keys` that have values.
pub(crate) fn query(path: &str, keys: &[(&str, Option<&str>)]) -> String {
    let encode = |value: &str| -> String {
        let bytes = value.bytes().map(|byte| match byte {
            b'-' | b'.' | b'_' | b'~' | b':' => char::from(byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        });
        bytes.collect()
    };
    let set = keys
        .iter()
        .filter_map(|(key, value)| Some((key, (*value)?)));
    let pairs: Vec<_> = set
        .map(|(key, value)| format!("{key}={}", encode(value)))
        .collect();
    match pairs.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", pairs.join("&")),
    }
}

async fn read(answer: Response<Incoming>) -> anyhow::Result<(StatusCode, Bytes)> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
    Ok((status, body.to_bytes()))
}

/// What a hub's refusal says, and what to do about it.
fn refusal(status: StatusCode, answer: &Value, with_token: bool) -> anyhow::Error {
    let code = answer["error"].as_str().unwrap_or("unknown");
    if status == StatusCode::UNAUTHORIZED {
        return match with_token {
            true => {
                anyhow!("the hub does not take this token; it must be that of its admin.token_file")
            }
            false => anyhow!(
                "the hub wants a token: name the file with --token-file or NC_ADMIN_TOKEN_FILE"
            ),
        };
    }
    if status == StatusCode::NOT_FOUND && code == "not_found" {
        return anyhow!(
            "this is no admin API, or that of an older version: --url must be the hub's admin.bind, \
             not its port for tunnels or metrics"
        );
    }
    let silent = silent(answer);
    match answer["detail"].as_str() {
        Some(detail) if !silent.is_empty() => {
            anyhow!("the hub refuses ({code}): {detail}\n{}", silent.trim_end())
        }
        Some(detail) => anyhow!("the hub refuses ({code}): {detail}"),
        None => anyhow!("the hub refuses: {code} ({status})"),
    }
}

/// Reads `--url`, an address without a path.
///
/// # Errors
/// It is none.
pub(crate) fn parse_url(text: &str) -> anyhow::Result<WsUrl> {
    let ws = match text.trim().split_once("://") {
        Some(("http", rest)) => format!("ws://{rest}"),
        Some(("https", rest)) => format!("wss://{rest}"),
        _ => bail!("--url {text}: must be http://HOST:PORT or https://HOST:PORT"),
    };
    let url: WsUrl = ws.parse().with_context(|| format!("--url {text}"))?;
    ensure!(
        matches!(url.uri().path(), "" | "/") && url.uri().query().is_none(),
        "--url {text}: only the address belongs here, without a path"
    );
    Ok(url)
}

fn bearer(file: &PathBuf) -> anyhow::Result<HeaderValue> {
    let place = || format!("--token-file {}", file.display());
    let mut text = String::new();
    private_file::judge(file).with_context(place)?;
    let opened = std::fs::File::open(file).with_context(place)?;
    opened
        .take(MAX_TOKEN + 1)
        .read_to_string(&mut text)
        .with_context(place)?;
    let token = text.trim();
    let fits = !token.is_empty() && text.len() as u64 <= MAX_TOKEN;
    ensure!(
        fits && token.bytes().all(|byte| byte.is_ascii_graphic()),
        "{}: must hold one token, printable characters without spaces",
        place()
    );
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn urls_are_addresses() {
        let authority = |text| parse_url(text).map(|url| (url.is_tls(), url.authority()));
        let good = |text| authority(text).expect("good");
        assert_eq!(
            good("http://127.0.0.1:8766/"),
            (false, "127.0.0.1:8766".into())
        );
        assert_eq!(
            good("https://hub.example"),
            (true, "hub.example:443".into())
        );
        for text in [
            "127.0.0.1:8766",
            "ws://hub",
            "http://hub/api",
            "http://hub?x",
            "http://",
        ] {
            let error = format!("{:#}", authority(text).expect_err(text));
            assert!(error.contains("--url"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_port_that_speaks_tls_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = parse_url(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let dialer = dialer(&url, None).unwrap();
        let (asked, ()) = tokio::join!(exchange(&dialer, &url, Request::default()), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 512]).await.unwrap();
            // A fatal alert, unexpected_message (RFC 8446 section 6).
            stream.write_all(&[21, 3, 3, 0, 2, 2, 10]).await.unwrap();
        });
        let error = asked.unwrap_err().to_string();
        assert!(error.contains("https://"), "{error}");
    }

    #[test]
    fn values_of_a_query_are_escaped() {
        let keys = [
            ("client", Some("[::1]:5")),
            ("agent", None),
            ("cid", Some("a&b")),
        ];
        assert_eq!(query("flows", &keys), "flows?client=%5B::1%5D:5&cid=a%26b");
        assert_eq!(query("mesh", &[("scope", None)]), "mesh");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let told = |status, answer, with_token| refusal(status, &answer, with_token).to_string();
        let unauthorized = StatusCode::UNAUTHORIZED;
        assert!(told(unauthorized, Value::Null, false).contains("--token-file"));
        assert!(told(unauthorized, Value::Null, true).contains("admin.token_file"));
        let rejected = serde_json::json!({"error": "config_rejected", "detail": "cloud.yaml:3"});
        let told = told(StatusCode::UNPROCESSABLE_ENTITY, rejected, false);
        assert!(told.contains("config_rejected") && told.contains("cloud.yaml:3"));
    }
}
