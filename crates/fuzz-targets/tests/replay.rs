//! The kept inputs of the fuzzer, and cuts of them, through every target; needs no fuzzer.

#![allow(clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nowconnect_fuzz_targets::TARGETS;

/// Cuts that are made of one input, spread over its length.
const CUTS: usize = 40;
/// Bytes of one input, and of all of them.
const MOST: (usize, usize) = (16 * 1024, 512 * 1024);

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = fuzz().join("seeds").join(target);
    let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let paths = files.map(|file| file.expect("a file").path());
    paths
        .map(|path| (path.clone(), fs::read(path).expect("read")))
        .collect()
}

/// Says which input it was, should the target panic.
struct Input<'a>(&'a Path, usize);

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the first {} bytes of {}", self.1, self.0.display());
        }
    }
}

fn replay(name: &str) {
    let target = TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("a target");
    let seeds = seeds(name);
    assert!(!seeds.is_empty());
    for (path, bytes) in seeds {
        let step = bytes.len().div_ceil(CUTS).max(1);
        for length in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
            let _input = Input(&path, length);
            (target.run)(&bytes[..length]);
        }
    }
}

macro_rules! replays {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })+

        const REPLAYED: &[&str] = &[$(stringify!($name)),+];
    };
}

replays! {
    frame hello json_v1 flow relay ws_decode ws_bytes upgrade_request upgrade_answer connect_answer
    forwarded certificate proxy_header jwt claims jwks dpop dpop_claims pdp_answer probe_answer redis_answer
    redis_entry redis_notice redis_notices admin_request hub_answers hub_config hub_env agent_config agent_env
}

#[test]
fn every_target_is_replayed_and_fuzzed() {
    let names: BTreeSet<_> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    let replayed = REPLAYED.iter().map(ToString::to_string);
    assert_eq!(names, replayed.collect());
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("read");
    let (_, programs) = manifest.split_once("[[bin]]").expect("programs");
    let programs = programs
        .lines()
        .filter_map(|line| line.strip_prefix("name = "));
    assert_eq!(
        names,
        programs
            .map(|name| name.trim_matches('"').to_owned())
            .collect()
    );
    let dirs = fs::read_dir(fuzz().join("seeds")).expect("a directory");
    let dirs = dirs.map(|dir| dir.expect("an entry").file_name().into_string());
    assert_eq!(names, dirs.map(|dir| dir.expect("UTF-8")).collect());
}

#[test]
fn kept_inputs_are_small() {
    let inputs = TARGETS.iter().flat_map(|target| seeds(target.name));
    let total = inputs.fold(0, |total, (path, bytes)| {
        assert!(bytes.len() <= MOST.0, "{}", path.display());
        total + bytes.len()
    });
    assert!(total <= MOST.1, "{total}");
}
