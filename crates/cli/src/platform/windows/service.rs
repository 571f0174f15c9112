//! `nowconnect service`: an agent that Windows starts and stops.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceErrorControl,
    ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState,
    ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_service::{define_windows_service, service_dispatcher};

use super::{acl, control};
use crate::agent;
use crate::failure::Failure;
use crate::logging::{Limit, Rolling};

const EXAMPLES: &str = "\
Examples:
  nowconnect service install
  nowconnect service install --config D:\\nowconnect\\premise.yaml --name NowConnectAgent2
  sc start NowConnectAgent
  sc control NowConnectAgent paramchange
  nowconnect service uninstall

The service runs as its own account, 'NT SERVICE\\NowConnectAgent', which may read the directory
%ProgramData%\\NowConnect and write to logs in it. Stopping it lets flows end for 10 s; a change of the
configuration or of the token, or paramchange, reloads. Installing needs an administrator.";

/// How large the log becomes: six files, 60 MiB.
const LOG: Limit = Limit {
    size: 10 << 20,
    older: 5,
};
/// How long Windows waits for the service when it shuts down; longer than flows get to end.
const SHUTDOWN: Duration = Duration::from_secs(20);
/// How long uninstalling waits for the service to stop.
const STOP: Duration = Duration::from_secs(30);

/// Run an agent as a Windows service
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Install(Settings),
    Uninstall(Uninstall),
    Run(Settings),
}

/// Make the service, and directories that only it and administrators can read
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
struct Settings {
    /// Name of the service
    #[arg(long, value_name = "NAME", default_value = NAME)]
    name: String,
    /// Configuration file [default: %ProgramData%\NowConnect\premise.yaml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Log; older ones are kept beside it [default: %ProgramData%\NowConnect\logs\NAME.log]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// Stop the service and remove it; files stay
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct Uninstall {
    /// Name of the service
    #[arg(long, value_name = "NAME", default_value = NAME)]
    name: String,
}

const NAME: &str = "NowConnectAgent";

impl Settings {
    fn config(&self) -> PathBuf {
        let named = self.config.clone();
        named.unwrap_or_else(|| data().join("premise.yaml"))
    }

    fn log_file(&self) -> PathBuf {
        let named = self.log_file.clone();
        named.unwrap_or_else(|| data().join("logs").join(format!("{}.log", self.name)))
    }
}

/// Where the files of services belong.
fn data() -> PathBuf {
    let all = std::env::var_os("ProgramData").unwrap_or_else(|| r"C:\ProgramData".into());
    Path::new(&all).join("NowConnect")
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Install(settings) => Ok(install(&settings)?),
        Command::Uninstall(args) => Ok(uninstall(&args.name)?),
        Command::Run(settings) => serve(settings),
    }
}

fn install(settings: &Settings) -> anyhow::Result<()> {
    let access = ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE;
    let manager = ServiceManager::local_computer(None::<&str>, access)
        .context("cannot reach the service control manager: run this as an administrator")?;
    let absolute = |path: PathBuf| std::path::absolute(&path).context("cannot name a file");
    let (config, log_file) = (absolute(settings.config())?, absolute(settings.log_file())?);
    let logs = log_file.parent().context("the log needs a directory")?;
    let info = ServiceInfo {
        name: settings.name.clone().into(),
        display_name: format!("NowConnect agent ({})", settings.name).into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: std::env::current_exe().context("cannot name this program")?,
        launch_arguments: [
            ("--name", settings.name.clone().into()),
            ("--config", config.clone().into_os_string()),
            ("--log-file", log_file.clone().into_os_string()),
        ]
        .into_iter()
        .flat_map(|(option, value): (_, OsString)| [option.into(), value])
        .fold(vec!["service".into(), "run".into()], |mut all, one| {
            all.push(one);
            all
        }),
        dependencies: Vec::new(),
        account_name: Some(format!(r"NT SERVICE\{}", settings.name).into()),
        account_password: None,
    };
    let access = ServiceAccess::CHANGE_CONFIG | ServiceAccess::START;
    let service = manager.create_service(&info, access).with_context(|| {
        format!(
            "cannot make the service {}; if there is one, uninstall it first",
            settings.name
        )
    })?;
    recover(&service);
    directories(&settings.name, logs).context("the service is made, but not its directories")?;
    let (config, log_file) = (config.display(), log_file.display());
    println!(
        "{name} is installed and starts with Windows.\n\
         \x20 configuration {config}\n\
         \x20 log           {log_file}\n\
         Check the configuration, then start it:\n\
         \x20 nowconnect check --config \"{config}\"\n\
         \x20 sc start {name}",
        name = settings.name
    );
    Ok(())
}

/// What the manager does when the service fails, and that it waits when the machine shuts down. The
/// service works without, so what cannot be set is only told.
fn recover(service: &Service) {
    let restart = |seconds| ServiceAction {
        action_type: ServiceActionType::Restart,
        delay: Duration::from_secs(seconds),
    };
    let actions = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(Duration::from_secs(3600)),
        reboot_msg: None,
        command: None,
        actions: Some(vec![restart(2), restart(10), restart(60)]),
    };
    let description = "Connects targets in this network to NowConnect hubs";
    for (what, done) in [
        ("its description", service.set_description(description)),
        ("restarts", service.update_failure_actions(actions)),
        (
            "restarts after an exit code",
            service.set_failure_actions_on_non_crash_failures(true),
        ),
        (
            "the wait at a shutdown",
            service.set_preshutdown_timeout(SHUTDOWN),
        ),
    ] {
        if let Err(error) = done {
            let error = Failure::from(error);
            eprintln!("warning: {what} cannot be set: {}", error.text());
        }
    }
}

/// Makes the directories; those of other places are as private as whoever made them wants.
fn directories(name: &str, logs: &Path) -> anyhow::Result<()> {
    let data = data();
    std::fs::create_dir_all(&data)
        .and_then(|()| std::fs::create_dir_all(logs))
        .with_context(|| format!("cannot make {}", logs.display()))?;
    acl::let_service(&data, name, acl::Rights::Read)
        .with_context(|| format!("cannot set who may read {}", data.display()))?;
    acl::let_service(logs, name, acl::Rights::Modify)
        .with_context(|| format!("cannot set who may write {}", logs.display()))
}

fn uninstall(name: &str) -> anyhow::Result<()> {
    let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CONNECT)
        .context("cannot reach the service control manager")?;
    let access = ServiceAccess::QUERY_STATUS | ServiceAccess::STOP | ServiceAccess::DELETE;
    let service = manager
        .open_service(name, access)
        .with_context(|| format!("cannot open the service {name}: run this as an administrator"))?;
    stop(&service).with_context(|| format!("cannot stop {name}"))?;
    service
        .delete()
        .with_context(|| format!("cannot remove {name}"))?;
    println!("{name} is removed; its files are still there");
    Ok(())
}

fn stop(service: &Service) -> anyhow::Result<()> {
    let deadline = Instant::now() + STOP;
    let mut asked = false;
    loop {
        match service.query_status()?.current_state {
            ServiceState::Stopped => return Ok(()),
            ServiceState::Running if !asked => {
                service.stop()?;
                asked = true;
            }
            _ if Instant::now() >= deadline => bail!("it has not stopped in {} s", STOP.as_secs()),
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// What the service control manager has started this process for.
static ASKED: OnceLock<(Settings, Rolling)> = OnceLock::new();

fn serve(settings: Settings) -> Result<(), Failure> {
    let path = settings.log_file();
    let log =
        Rolling::open(&path, LOG).with_context(|| format!("cannot open {}", path.display()))?;
    let name = settings.name.clone();
    // The system calls back without what it was given.
    let _ = ASKED.set((settings, log));
    Ok(service_dispatcher::start(name, service_entry).context(
        "only the service control manager runs this: nowconnect service install, then sc start",
    )?)
}

define_windows_service!(service_entry, service_main);

fn service_main(_: Vec<OsString>) {
    let Some((settings, log)) = ASKED.get() else {
        return;
    };
    let mut log = log.clone();
    if let Err(error) = control::announce(settings.name.as_ref(), log.clone()) {
        let _ = writeln!(log, "error: cannot announce the service: {error}");
        return;
    }
    let config = settings.config();
    // Services start in the system's directory; names in the configuration are relative to the file.
    let moved = config.parent().map_or(Ok(()), std::env::set_current_dir);
    let ended = match moved.context("cannot enter the directory of the configuration") {
        Ok(()) => agent::run(agent::Args::of(config)),
        Err(error) => Err(Failure::Usage(error)),
    };
    let code = ended.map_or_else(
        |failure| {
            let _ = writeln!(log, "error: {}", failure.text());
            failure.code()
        },
        |()| 0,
    );
    control::stopped(u32::from(code));
}
