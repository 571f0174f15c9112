//! A real OpenLDAP server with sample people, on a port of 127.0.0.1.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::process::Process;
use crate::wait::until;
use crate::{lab, ports, program};

/// The suffix of the directory.
pub const BASE_DN: &str = "dc=example,dc=org";
/// The administrator.
pub const ADMIN_DN: &str = "cn=admin,dc=example,dc=org";
/// The administrator's password.
pub const ADMIN_PASSWORD: &str = "admin-secret";
/// The password of every person.
pub const USER_PASSWORD: &str = "user-secret";

/// A running `slapd`; killed when dropped.
#[derive(Debug)]
pub struct Slapd {
    process: Process,
    serve: Command,
    dir: TempDir,
    addr: SocketAddr,
    tls_addr: SocketAddr,
}

impl Slapd {
    /// Starts a server with `people` entries `uid=uN,ou=people` below [`BASE_DN`]; it offers
    /// StartTLS and, on another port, TLS with a certificate for 127.0.0.1 and `localhost`.
    ///
    /// # Errors
    /// When OpenLDAP is not installed or does not start.
    pub async fn start(people: usize) -> Result<Self> {
        let dir = TempDir::with_prefix("nowconnect-slapd-")?;
        lab::write_certificates(dir.path())?;
        let config = dir.path().join("slapd.conf");
        program::write(&config, &configuration(dir.path()))?;
        std::fs::create_dir(dir.path().join("db"))?;
        let ldif = dir.path().join("people.ldif");
        program::write(&ldif, &entries(people))?;
        let mut load = Command::new(program::find("slapadd", "slapd")?);
        program::succeed(load.args(["-q", "-f"]).arg(&config).arg("-l").arg(&ldif)).await?;

        let addr = ports::local(ports::reserve()?);
        let tls_addr = ports::local(ports::reserve()?);
        let urls = format!("ldap://{addr} ldaps://{tls_addr}");
        let mut serve = Command::new(program::find("slapd", "slapd")?);
        serve.arg("-f").arg(&config).args(["-h", &urls, "-d", "0"]);
        let mut process = Process::spawn("slapd", &mut serve, dir.path())?;
        listens(&mut process, addr).await?;
        Ok(Self {
            process,
            serve,
            dir,
            addr,
            tls_addr,
        })
    }

    /// Kills it; clients are refused from then on.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it again, at the same addresses.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = Process::spawn("slapd", &mut self.serve, self.dir.path())?;
        listens(&mut self.process, self.addr).await
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it speaks TLS from the first byte.
    pub fn tls_addr(&self) -> SocketAddr {
        self.tls_addr
    }

    /// The CA of its certificate, for `LDAPTLS_CACERT`.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// `ldapsearch` as the administrator against `addr`, which may be a tunnel's other end.
    ///
    /// # Errors
    /// When the client is not installed.
    pub fn search(&self, addr: SocketAddr) -> Result<Command> {
        let mut command = Command::new(program::find("ldapsearch", "ldap-utils")?);
        command
            .args([
                "-x",
                "-LLL",
                "-o",
                "nettimeout=30",
                "-H",
                &format!("ldap://{addr}"),
            ])
            .args(["-D", ADMIN_DN, "-w", ADMIN_PASSWORD, "-b", BASE_DN])
            .env("LDAPTLS_CACERT", self.ca_file())
            .env("LDAPTLS_REQCERT", "demand");
        Ok(command)
    }
}

async fn listens(process: &mut Process, addr: SocketAddr) -> Result<()> {
    let up = until("slapd to listen", async || {
        Ok(TcpStream::connect(addr).await?)
    });
    process.while_alive(up).await?;
    Ok(())
}

/// The distinguished name of a person.
pub fn person(index: usize) -> String {
    format!("uid=u{index},ou=people,{BASE_DN}")
}

/// A simple bind (RFC 4511, 4.2) as it stands on the wire; `id` and lengths up to 127.
///
/// # Errors
/// When name and password together are too long for short lengths.
pub fn bind_request(id: u8, dn: &str, password: &str) -> Result<Vec<u8>> {
    let octets = |tag: u8, value: &[u8]| -> Result<Vec<u8>> {
        let len = u8::try_from(value.len()).ok().filter(|len| *len < 128);
        Ok([&[tag, len.context("too long")?], value].concat())
    };
    let fields = [
        octets(2, &[3])?,
        octets(4, dn.as_bytes())?,
        octets(0x80, password.as_bytes())?,
    ];
    let message = [octets(2, &[id])?, octets(0x60, &fields.concat())?].concat();
    octets(0x30, &message)
}

/// The answer of a server to a successful [`bind_request`].
pub fn bind_success(id: u8) -> Vec<u8> {
    vec![0x30, 12, 2, 1, id, 0x61, 7, 10, 1, 0, 4, 0, 4, 0]
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "include /etc/ldap/schema/core.schema\n\
         include /etc/ldap/schema/cosine.schema\n\
         include /etc/ldap/schema/inetorgperson.schema\n\
         modulepath /usr/lib/ldap\n\
         moduleload back_mdb\n\
         pidfile {dir}/slapd.pid\n\
         sizelimit unlimited\n\
         TLSCACertificateFile {dir}/ca.pem\n\
         TLSCertificateFile {dir}/server.crt\n\
         TLSCertificateKeyFile {dir}/server.key\n\
         database mdb\n\
         dbnosync\n\
         suffix \"{BASE_DN}\"\n\
         rootdn \"{ADMIN_DN}\"\n\
         rootpw {ADMIN_PASSWORD}\n\
         directory {dir}/db\n\
         maxsize 268435456\n\
         index objectClass,uid eq\n"
    )
}

fn entries(people: usize) -> String {
    let mut ldif = format!(
        "dn: {BASE_DN}\nobjectClass: dcObject\nobjectClass: organization\no: Example\ndc: example\n\n\
         dn: ou=people,{BASE_DN}\nobjectClass: organizationalUnit\nou: people\n\n"
    );
    for index in 0..people {
        let _ = write!(
            ldif,
            "dn: {}\nobjectClass: inetOrgPerson\nuid: u{index}\ncn: Person {index}\nsn: {index}\n\
             mail: u{index}@example.org\nuserPassword: {USER_PASSWORD}\n\n",
            person(index)
        );
    }
    ldif
}
