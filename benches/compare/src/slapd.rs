//! A real directory server with a hundred people in it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::failure::{Context, Failure, Result};
use crate::load::Search;
use crate::process::Process;
use crate::{sockets, tool};

const SLAPD: &str = "/usr/sbin/slapd";
const SLAPADD: &str = "/usr/sbin/slapadd";
/// Where distributions keep OpenLDAP's schema and modules.
const SCHEMAS: [&str; 2] = ["/etc/ldap/schema", "/etc/openldap/schema"];
const MODULES: [&str; 3] = ["/usr/lib/ldap", "/usr/lib64/openldap", "/usr/lib/openldap"];
const SUFFIX: &str = "dc=compare,dc=test";
const PEOPLE: usize = 100;
const STARTING: Duration = Duration::from_secs(10);

/// Dropping it stops the server.
#[derive(Debug)]
pub(crate) struct Slapd {
    pub(crate) address: SocketAddr,
    /// The search that finds the hundred.
    pub(crate) search: Search,
    _process: Process,
}

impl Slapd {
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        let database = directory.join("database");
        fs::create_dir_all(&database).context(database.display())?;
        let configuration = directory.join("slapd.conf");
        fs::write(&configuration, configure(&database)?).context(configuration.display())?;
        let entries = directory.join("people.ldif");
        fs::write(&entries, people()).context(entries.display())?;
        let mut load = Command::new(SLAPADD);
        tool::run(load.arg("-f").arg(&configuration).arg("-l").arg(&entries))?;

        let address = sockets::free()?;
        let mut command = Command::new(SLAPD);
        command
            .args(["-d", "0", "-h", &format!("ldap://{address}/"), "-f"])
            .arg(&configuration);
        let mut process = Process::start("slapd", &command, directory)?;
        let deadline = Instant::now() + STARTING;
        loop {
            match Search::record(address, SUFFIX, "inetOrgPerson", PEOPLE).await {
                Ok(search) => {
                    return Ok(Self {
                        address,
                        search,
                        _process: process,
                    });
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(Failure::new(format!("slapd: {error}")));
                }
                Err(_) => process.check_alive()?,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn first_existing(candidates: &[&str], what: &str) -> Result<PathBuf> {
    let found = candidates
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_dir());
    found.context(format!(
        "OpenLDAP's {what} are in none of {}",
        candidates.join(", ")
    ))
}

fn configure(database: &Path) -> Result<String> {
    let schemas = first_existing(&SCHEMAS, "schemas")?;
    let modules = first_existing(&MODULES, "modules")?;
    let includes: String = ["core", "cosine", "inetorgperson"]
        .map(|name| format!("include {}/{name}.schema\n", schemas.display()))
        .concat();
    Ok(format!(
        "{includes}modulepath {}\nmoduleload back_mdb\ndatabase mdb\nsuffix {SUFFIX}\n\
         directory {}\nmaxsize 67108864\nindex objectClass eq\n",
        modules.display(),
        database.display()
    ))
}

fn people() -> String {
    let mut ldif = format!(
        "dn: {SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\ndc: compare\no: Compare\n\n"
    );
    for number in 0..PEOPLE {
        ldif.push_str(&format!(
            "dn: uid=user{number},{SUFFIX}\nobjectClass: inetOrgPerson\nuid: user{number}\n\
             cn: Person Number {number}\nsn: Number {number}\ngivenName: Person\n\
             mail: user{number}@compare.test\ntelephoneNumber: +41 44 000 {number:04}\n\
             departmentNumber: {}\nemployeeNumber: {number:06}\n\n",
            number % 7
        ));
    }
    ldif
}
