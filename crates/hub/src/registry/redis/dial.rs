//! Connections to single servers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_link::dial::{DialError, TcpOptions, dial_tcp};
use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::{ClientFiles, LiveClientConfig, Roots, TlsError};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
    RedisError, Value,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::bounded::Bounded;
use super::fault::Fault;
use crate::config::redis_url::{Kind, Node, Target};

/// How long TCP, TLS and login may take together.
const CONNECT: Duration = Duration::from_millis(1500);
/// Silence after which the kernel probes a connection.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Takes what a server sends without being asked; must not block.
pub(super) type OnPush = Box<dyn Fn(Push) + Send + Sync>;

/// Something that a server sent without being asked.
pub(super) enum Push {
    /// A message on a channel.
    Message(Vec<u8>),
    /// The connection is gone.
    Lost,
}

/// A connection that any number of callers use at the same time; closed with its last clone.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) node: Node,
    inner: MultiplexedConnection,
    _driver: Arc<AbortOnDropHandle<()>>,
}

impl Connection {
    /// Sends a command and waits for its answer, however long that takes.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, RedisError> {
        command.query_async(&mut self.inner.clone()).await
    }

    /// Sends ASKING and a command right after it.
    pub(super) async fn ask_importing(&self, command: &Cmd) -> Result<Value, RedisError> {
        let mut both = redis::pipe();
        both.cmd("ASKING").ignore().add_command(command.clone());
        let answers: Vec<Value> = both.query_async(&mut self.inner.clone()).await?;
        Ok(answers.into_iter().next().unwrap_or(Value::Nil))
    }

    /// Hears messages on `channel` from now on.
    pub(super) async fn subscribe(&self, channel: &str) -> Result<(), RedisError> {
        self.inner.clone().subscribe(channel).await
    }

    /// [`Self::ask`] with a bound.
    pub(super) async fn ask_within(&self, most: Duration, command: &Cmd) -> Result<Value, Fault> {
        self.limit(most, self.ask(command)).await
    }

    /// Waits for `work` with this server, up to `most`.
    pub(super) async fn limit<T>(
        &self,
        most: Duration,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, Fault> {
        match timeout(most, work).await {
            Ok(done) => done.map_err(|source| self.fault(source)),
            Err(_) => Err(Fault::Late {
                node: self.node.clone(),
                after_ms: most.as_millis(),
            }),
        }
    }

    pub(super) fn fault(&self, source: RedisError) -> Fault {
        Fault::Server {
            node: self.node.clone(),
            source,
        }
    }
}

/// Who logs in where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    Server,
    Sentinel,
}

/// Makes connections to the servers of one target.
pub(super) struct Dialer {
    pub(super) target: Target,
    tls: Option<Arc<ClientConfig>>,
    tasks: Tasks,
}

impl Dialer {
    /// Reads the CA certificates, if there is need of any.
    pub(super) async fn new(
        target: Target,
        ca: Option<PathBuf>,
        tasks: Tasks,
    ) -> Result<Self, Fault> {
        let tls = match target.tls {
            true => Some(trust(ca).await?),
            false => None,
        };
        Ok(Self { target, tls, tasks })
    }

    /// Connects and logs in.
    pub(super) async fn connect(
        &self,
        node: &Node,
        login: Login,
        on_push: OnPush,
    ) -> Result<Connection, Fault> {
        match timeout(CONNECT, self.connect_slowly(node, login, on_push)).await {
            Ok(done) => done,
            Err(_) => Err(Fault::Late {
                node: node.clone(),
                after_ms: CONNECT.as_millis(),
            }),
        }
    }

    async fn connect_slowly(
        &self,
        node: &Node,
        login: Login,
        on_push: OnPush,
    ) -> Result<Connection, Fault> {
        let options = TcpOptions {
            keepalive: Some(KEEPALIVE),
            user_timeout: None,
        };
        let tcp = dial_tcp(&node.host, node.port, CONNECT, options).await?;
        let Some(tls) = &self.tls else {
            return self.log_in(node, login, tcp, on_push).await;
        };
        let failed = |source| DialError::Tls {
            to: node.to_string(),
            source,
        };
        let name = ServerName::try_from(node.host.clone())
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let connect = TlsConnector::from(tls.clone()).connect(name, tcp);
        let stream = connect.await.map_err(failed)?;
        self.log_in(node, login, stream, on_push).await
    }

    async fn log_in<S>(
        &self,
        node: &Node,
        login: Login,
        stream: S,
        on_push: OnPush,
    ) -> Result<Connection, Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // The answer to a subscription and its messages come on the connection of the commands.
        let config = AsyncConnectionConfig::new().set_push_sender(move |info: PushInfo| {
            forward(info, &on_push);
            Ok::<(), ()>(())
        });
        let stream = Bounded::new(stream);
        let connected =
            MultiplexedConnection::new_with_config(&self.login(login), stream, config).await;
        let (inner, driver) = connected.map_err(|source| Fault::Server {
            node: node.clone(),
            source,
        })?;
        let driver = self.tasks.spawn("redis", driver);
        Ok(Connection {
            node: node.clone(),
            inner,
            _driver: Arc::new(AbortOnDropHandle::new(driver)),
        })
    }

    fn login(&self, login: Login) -> RedisConnectionInfo {
        let target = &self.target;
        let (user, password, db) = match login {
            Login::Server => (&target.user, &target.password, target.db),
            Login::Sentinel => (&target.sentinel_user, &target.sentinel_password, 0),
        };
        let db = if target.kind == Kind::Cluster { 0 } else { db };
        let mut info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_skip_set_lib_name()
            .set_db(db);
        if let Some(user) = user {
            info = info.set_username(user);
        }
        if let Some(password) = password {
            info = info.set_password(password);
        }
        info
    }
}

fn forward(info: PushInfo, on_push: &OnPush) {
    match info.kind {
        PushKind::Disconnection => on_push(Push::Lost),
        PushKind::Message => {
            if let Some(Value::BulkString(payload)) = info.data.into_iter().nth(1) {
                on_push(Push::Message(payload));
            }
        }
        _ => {}
    }
}

/// Loaded for every connection: a replaced file counts from the next one on.
async fn trust(ca: Option<PathBuf>) -> Result<Arc<ClientConfig>, TlsError> {
    let files = ClientFiles {
        roots: ca.map_or(Roots::System, Roots::Only),
        identity: None,
    };
    let load = move || LiveClientConfig::load(files).map(|live| live.current());
    let loaded = tokio::task::spawn_blocking(load).await;
    loaded.map_err(|error| TlsError::Config(error.to_string()))?
}
