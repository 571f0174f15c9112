//! The run: systems take turns, round after round, each freshly started for every measurement.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::cases::{self, Case};
use crate::credentials::Credentials;
use crate::echo::Echo;
use crate::failure::{Context, Failure, Result};
use crate::load::{Load, Sample, Subject};
use crate::options::Options;
use crate::process::Process;
use crate::report::{self, Outcome};
use crate::scratch::Scratch;
use crate::slapd::Slapd;
use crate::systems::{self, Binaries, PrivilegeSeparation, Running, Setup, System, own_command};
use crate::{json, machine, obtain, sockets};

/// How long a system may take until a client gets through it.
const READY: Duration = Duration::from_secs(20);
/// How long one attempt of that may take.
const ATTEMPT: Duration = Duration::from_millis(1000);

/// What every measurement uses. Its fields are dropped in order: servers before their files.
struct Stage<'a> {
    options: &'a Options,
    idle_connections: usize,
    binaries: Binaries,
    credentials: Credentials,
    slapd: Option<Slapd>,
    _privilege_separation: PrivilegeSeparation,
    scratch: Scratch,
}

/// Runs everything that `options` ask for and prints the report.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let idle_connections = options
        .idle_connections
        .min(machine::connections_allowed()?);
    let choose = |error: String| Failure::new(error);
    let cases = cases::choose(cases::all(idle_connections), &options.only, |case| {
        &case.name
    })
    .map_err(choose)?;
    let systems = cases::choose(systems::ALL.to_vec(), &options.systems, |system| {
        system.name()
    })
    .map_err(choose)?;
    if options.list {
        cases
            .iter()
            .for_each(|case| println!("{:14} {}", case.name, case.title));
        systems
            .iter()
            .for_each(|system| println!("{}", system.name()));
        return Ok(());
    }
    let binaries = obtain::binaries(options, &systems)?;
    let facts = machine::facts(options, &binaries, &systems);
    report::head(&facts, options);
    let idles = cases.iter().any(|case| case.load == Load::Idle);
    if idles && idle_connections < options.idle_connections {
        println!(
            "idle connections: {idle_connections}, the limits of files and ports allow no more\n"
        );
    }
    let needs_ldap = cases
        .iter()
        .any(|case| matches!(case.load, Load::Ldap { .. }));
    let stage = Stage::set(options, idle_connections, binaries, needs_ldap).await?;
    let mut outcomes = Vec::new();
    for case in cases {
        let outcome = stage.contest(case, &systems).await?;
        report::table(&outcome);
        outcomes.push(outcome);
    }
    report::targets(&outcomes);
    if let Some(file) = &options.json {
        std::fs::write(file, json::document(&facts, options, &outcomes)).context(file.display())?;
    }
    let failed = outcomes.iter().flat_map(|outcome| &outcome.results);
    let failed = failed.filter(|(system, results)| {
        system.is_ours() && results.iter().any(|result| result.is_err())
    });
    match failed.count() {
        0 => Ok(()),
        count => Err(Failure::new(format!("ours failed in {count} case(s)"))),
    }
}

impl<'a> Stage<'a> {
    async fn set(
        options: &'a Options,
        idle_connections: usize,
        binaries: Binaries,
        needs_ldap: bool,
    ) -> Result<Self> {
        let scratch = Scratch::for_run(options.keep)?;
        let credentials = Credentials::make(&scratch.path().join("keys"))?;
        let slapd = if needs_ldap {
            Some(Slapd::start(&scratch.path().join("slapd")).await?)
        } else {
            None
        };
        Ok(Self {
            options,
            idle_connections,
            binaries,
            credentials,
            slapd,
            _privilege_separation: PrivilegeSeparation,
            scratch,
        })
    }

    /// All rounds of one case. A system that fails is a finding; only the bench's own trouble ends
    /// the run.
    async fn contest(&self, case: Case, systems: &[System]) -> Result<Outcome> {
        let systems: Vec<System> = systems
            .iter()
            .copied()
            .filter(|system| cases::applies(&case, *system))
            .collect();
        let mut results = BTreeMap::<usize, Vec<Result<Sample>>>::new();
        for round in 1..=self.options.rounds {
            for (index, system) in systems.iter().enumerate() {
                let sample = self.measure(&case, *system, round).await;
                let figures = sample.as_ref().map_or_else(ToString::to_string, |sample| {
                    format!(
                        "{:.3?} foreign cores {:.2}",
                        sample.values, sample.foreign_cores
                    )
                });
                eprintln!("{} round {round} {:12} {figures}", case.name, system.name());
                results.entry(index).or_default().push(sample);
            }
        }
        let results = systems.into_iter().zip(results.into_values()).collect();
        Ok(Outcome { case, results })
    }

    async fn measure(&self, case: &Case, system: System, round: usize) -> Result<Sample> {
        let name = format!("{}-{}-{round}", case.name, system.name());
        let scratch = Scratch::make(self.scratch.path().join(name), self.options.keep)?;
        let ldap = self
            .slapd
            .as_ref()
            .filter(|_| matches!(case.load, Load::Ldap { .. }));
        // A port of its own for every measurement: connections of the one before linger in TIME_WAIT.
        let target = sockets::free()?;
        let mut command = own_command("target")?;
        command.arg(target.to_string());
        let _target_process = Process::start("target", &command, scratch.path())?;
        let mut setup = Setup {
            directory: scratch.path(),
            binaries: &self.binaries,
            credentials: &self.credentials,
            target: ldap.map_or(target, |slapd| slapd.address),
            round_trip: case.round_trip,
            paths: Vec::new(),
        };
        let mut running = system.start(&mut setup)?;
        self.wait_until_ready(&mut running, ldap).await?;
        let subject = Subject {
            entry: running.entry,
            target: setup.target,
            processes: &running.processes,
            period: self.options.period,
            idle_connections: self.idle_connections,
            search: ldap.map(|slapd| &slapd.search),
        };
        let sample = case.load.measure(&subject).await;
        // That a process died says more than that connections broke.
        running
            .processes
            .iter_mut()
            .try_for_each(Process::check_alive)?;
        sample
    }

    /// Ready is what lets a client through to the target and back.
    async fn wait_until_ready(&self, running: &mut Running, ldap: Option<&Slapd>) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let attempt = timeout(ATTEMPT, async {
                match ldap {
                    Some(slapd) => slapd.search.check(running.entry).await,
                    None => {
                        let mut echo = Echo::over(sockets::connect(running.entry).await, 0)?;
                        echo.exchange(16).await
                    }
                }
            });
            let error = match attempt.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(late) => Failure::new(late.to_string()),
            };
            running
                .processes
                .iter_mut()
                .try_for_each(Process::check_alive)?;
            if Instant::now() > deadline {
                let seconds = READY.as_secs();
                return Err(Failure::new(format!(
                    "not ready after {seconds} s: {error}"
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
