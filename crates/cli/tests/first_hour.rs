//! The page docs/first-hour.md, done as it says: its files are written, its commands run, and they must say what it shows.
//!
//! - ```` ```yaml NAME ```` is a file.
//! - ```` ```console ```` has commands (`$ `), each followed by what it says, `…` for what differs. One that ends in `&` goes
//!   on; with ```` ```console once ```` only to the end of the block.
//! - Ports are replaced by free ones, and an echo server stands for the target.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::fs;
use std::io::copy;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: &str = include_str!("../../../docs/first-hour.md");
/// The ports of the page; the last one is the target's.
const PORTS: [&str; 10] = [
    "1389", "8765", "8766", "8000", "8090", "8091", "1390", "8443", "8444", "10389",
];
const PATIENCE: Duration = Duration::from_secs(30);

/// Free ports in place of those of the page, and the one of the echo server.
fn ports() -> Vec<(&'static str, String)> {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let held: Vec<_> = PORTS[1..]
        .iter()
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let all = held.iter().chain([&target]);
    let ports = all.map(|socket| socket.local_addr().unwrap().port().to_string());
    let ports = PORTS.into_iter().zip(ports).collect();
    thread::spawn(move || {
        for client in target.incoming().map_while(Result::ok) {
            thread::spawn(move || echo(&client));
        }
    });
    ports
}

fn echo(client: &TcpStream) {
    let (mut from, mut to) = (client, client);
    drop(copy(&mut from, &mut to)); // A client that resets is fine.
}

struct Page {
    dir: PathBuf,
    ports: Vec<(&'static str, String)>,
    running: Vec<Child>,
    commands: usize,
}

impl Page {
    fn with_ports(&self, text: &str) -> String {
        let is_digit = |c: char| c.is_ascii_digit();
        let mut done = String::new();
        let mut rest = text;
        while let Some(start) = rest.find(is_digit) {
            let end = rest[start..]
                .find(|c| !is_digit(c))
                .map_or(rest.len(), |n| start + n);
            let number = &rest[start..end];
            let port = self.ports.iter().find(|(port, _)| *port == number);
            done.push_str(&rest[..start]);
            done.push_str(port.map_or(number, |(_, port)| port));
            rest = &rest[end..];
        }
        done + rest
    }

    fn run(&mut self, command: &str, said: &str, line: usize) {
        self.commands += 1;
        let output = self.dir.join(format!("output-{}", self.commands));
        let file = fs::File::create(&output).unwrap();
        let (command, stays) = match command.strip_suffix(" &") {
            Some(command) => (format!("exec env {command}"), true),
            None => (command.to_owned(), false),
        };
        let bin = Path::new(env!("CARGO_BIN_EXE_nowconnect"))
            .parent()
            .unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let child = Command::new("bash")
            .args(["-c", &command])
            .current_dir(&self.dir)
            .env_clear()
            .envs([("PATH", path.as_str()), ("NO_COLOR", "1")])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap();
        self.running.push(child);
        let begin = Instant::now();
        loop {
            let ended = self.running.last_mut().unwrap().try_wait().unwrap();
            let output = fs::read_to_string(&output).unwrap();
            let missing = missing(said, &output);
            if missing.is_none() && (stays || ended.is_some()) {
                break;
            }
            let late = begin.elapsed() > PATIENCE || ended.is_some();
            if let Some(missing) = missing.filter(|_| late) {
                panic!(
                    "docs/first-hour.md:{line}: $ {command}\nshould say: {missing}\nsaid: {output}"
                );
            }
            assert!(
                !late || ended.is_some(),
                "docs/first-hour.md:{line}: $ {command} does not end"
            );
            thread::sleep(Duration::from_millis(20));
        }
        if !stays {
            self.running.pop();
        }
    }

    /// Stops what was started since there were so many, the newest first.
    fn stop(&mut self, keep: usize) {
        while self.running.len() > keep {
            let mut child = self.running.pop().unwrap();
            drop(child.kill());
            child.wait().unwrap();
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.stop(0);
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// The first line of the expected that the output does not have, in order; `…` is anything.
fn missing<'a>(said: &'a str, output: &str) -> Option<&'a str> {
    let mut rest = output;
    for line in said.lines() {
        for piece in line
            .split('…')
            .map(str::trim)
            .filter(|piece| !piece.is_empty())
        {
            let Some(at) = rest.find(piece) else {
                return Some(line);
            };
            rest = &rest[at + piece.len()..];
        }
    }
    None
}

/// The commands of a console block, each with what it says and its line.
fn commands(block: &str, first: usize) -> Vec<(String, String, usize)> {
    let mut commands: Vec<(String, String, usize)> = Vec::new();
    let mut continued = false;
    for (number, line) in (first..).zip(block.lines()) {
        let last = commands.last_mut();
        match (line.strip_prefix("$ "), last) {
            (Some(command), _) => commands.push((command.to_owned(), String::new(), number)),
            (None, Some((command, _, _))) if continued => {
                command.truncate(command.len() - 1);
                command.push_str(line.trim_start());
            }
            (None, Some((_, said, _))) => said.extend([line, "\n"]),
            (None, None) => panic!("docs/first-hour.md:{number}: output without a command"),
        }
        continued = commands.last().unwrap().0.ends_with('\\');
    }
    commands
}

#[test]
fn the_first_hour_goes_as_the_page_says() {
    let dir = std::env::temp_dir().join(format!("nowconnect-first-hour-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (ports, running) = (ports(), Vec::new());
    let mut page = Page {
        dir,
        ports,
        running,
        commands: 0,
    };
    let mut line = 1;
    for (index, part) in PAGE.split("```").enumerate() {
        let (info, text) = part.split_once('\n').unwrap_or((part, ""));
        let text = page.with_ports(text);
        if index % 2 == 1 {
            let keep = page.running.len();
            if let Some(name) = info.strip_prefix("yaml ") {
                fs::write(page.dir.join(name), &text).unwrap();
            } else if info.starts_with("console") {
                for (command, said, line) in commands(&text, line + 1) {
                    page.run(&command, &said, line);
                }
            }
            if info == "console once" {
                page.stop(keep);
            }
        }
        line += part.matches('\n').count();
    }
    assert!(page.commands > 20, "{} commands", page.commands);
}
