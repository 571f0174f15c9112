//! The file that audit records are appended to.
//!
//! A trail goes on where it ended: behind the last record of the file, or, when the file is new, behind
//! the one that `<file>.head` names. That small file is written after every append, so that the chain
//! survives a rotation while the hub is down, and so that an end which was cut off then is noticed: the
//! sequence numbers go on from the later of both.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::record::{Digest, Draft, Hasher, Head, Record, Seal};
use crate::platform::files::{self, FileExt as _, Identity};
use crate::replace_file::SECRET;

/// Bytes at the end of the file that are searched for its last record; none is as long.
const WINDOW: u64 = 1024 * 1024;
/// How every record begins.
const BEGINNING: &[u8] = b"{\"ts\":\"";
/// Bytes of the file that names the last record: its number, its hash, two separators.
const HEAD_BYTES: usize = 20 + 1 + 64 + 1;

/// A file open for appending.
#[derive(Debug)]
pub(crate) struct Trail {
    path: PathBuf,
    file: File,
    identity: Identity,
    head_file: File,
    head: Head,
    torn: Option<Torn>,
    /// It is no device, which takes what is written and may keep nothing of it.
    keeps: bool,
}

/// Bytes behind the last record that are none.
#[derive(Debug, PartialEq, Eq)]
struct Torn {
    /// How many, with the newline that ends them.
    bytes: u64,
    digest: Digest,
    /// The newline is still to be written.
    open: bool,
}

/// An append failed; the first `written` drafts are in the file all the same.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) written: usize,
    pub(crate) error: io::Error,
}

impl Trail {
    /// Opens `path`, made with mode 0600 if it is not there, to go on behind its last record, behind
    /// `known`, or behind what `<path>.head` names, whichever is the latest.
    ///
    /// # Errors
    /// It cannot be read and written, another process appends to it, or it holds something else.
    pub(crate) fn open(path: &Path, known: Option<Head>) -> io::Result<Self> {
        let options = || OpenOptions::new().read(true).create(true).clone();
        let file = files::open(options().append(true), path, SECRET)?;
        if files::is_pipe(&file)? {
            return Err(io::Error::other("it is a pipe, which keeps nothing"));
        }
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let message = "another process appends to it; give each hub a file of its own";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
        }
        let keeps = file.metadata()?.is_file();
        let head_path = head_path(path);
        let head_file = files::open(options().write(true).truncate(false), &head_path, SECRET)?;
        let (last, torn) = read_tail(&file)?;
        let noted = known.or_else(|| read_head(&head_file));
        Ok(Self {
            path: path.to_owned(),
            identity: Identity::of(&file)?,
            file,
            head_file,
            head: later(noted, last).unwrap_or(Head::START),
            torn,
            keeps,
        })
    }

    /// Whether its path still leads to it, so that it was not moved away.
    pub(crate) fn is_in_place(&self) -> bool {
        Identity::at(&self.path).is_ok_and(|there| there == self.identity)
    }

    /// Its last record.
    pub(crate) fn head(&self) -> Head {
        self.head
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `drafts`, all of them or, as a rule, none.
    ///
    /// # Errors
    /// The disk is full, for instance. What was written of them is taken away again where the file
    /// allows it; where it does not, the torn line is closed by the next append.
    pub(crate) fn append(&mut self, drafts: &[Draft], seal: Option<&Seal>) -> Result<(), Failed> {
        let failed = |error| Failed { written: 0, error };
        let before = self.file.metadata().map_err(failed)?.len();
        let (mut out, mut head) = (Vec::with_capacity(512 * drafts.len()), self.head);
        let repair = self.torn.as_ref().and_then(|torn| {
            out.extend(torn.open.then_some(b'\n'));
            torn.note()
        });
        let all = repair.iter().chain(drafts);
        all.for_each(|draft| draft.write(&mut out, &mut head, seal));
        if let Err(error) = self.write_all(&out) {
            let written = self.take_back(before);
            let repairs = usize::from(written > 0 && repair.is_some());
            let written = written - repairs;
            return Err(Failed { written, error });
        }
        self.head = head;
        self.torn = None;
        // Without it the file itself still tells; it matters when that one was moved.
        let _ = write_head(&self.head_file, head);
        Ok(())
    }

    fn write_all(&mut self, records: &[u8]) -> io::Result<()> {
        self.file.write_all(records)?;
        let nothing = || io::Error::other("it is a device, which keeps nothing");
        self.keeps.then_some(()).ok_or_else(nothing)
    }

    /// Undoes an append that failed half way. Returns how many records stay.
    fn take_back(&mut self, len: u64) -> usize {
        let longer = self.file.metadata().is_ok_and(|now| now.len() > len);
        if !longer || self.file.set_len(len).is_ok() {
            return 0;
        }
        // A file that can only grow.
        let Ok((last, torn)) = read_tail(&self.file) else {
            return 0;
        };
        let head = later(Some(self.head), last).unwrap_or(self.head);
        let more = head.seq - self.head.seq;
        (self.head, self.torn) = (head, torn);
        usize::try_from(more).unwrap_or_default()
    }

    /// Brings what was appended to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Torn {
    /// The record that tells of it; `None`: only a newline is missing.
    fn note(&self) -> Option<Draft> {
        let fields = json!({ "bytes": self.bytes, "sha256": self.digest.to_string() });
        (self.bytes > 0).then(|| super::note("audit_torn", fields))
    }
}

/// The later of two; the first when they are equally late.
fn later(one: Option<Head>, other: Option<Head>) -> Option<Head> {
    match (one, other) {
        (Some(one), Some(other)) if other.seq > one.seq => Some(other),
        (one, other) => one.or(other),
    }
}

fn head_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

fn read_head(file: &File) -> Option<Head> {
    let mut bytes = [0; HEAD_BYTES];
    file.read_exact_at(&mut bytes, 0).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim_end().parse().ok()
}

fn write_head(file: &File, head: Head) -> io::Result<()> {
    file.write_all_at(format!("{:020}:{}\n", head.seq, head.hash).as_bytes(), 0)
}

/// The last record of a file, and what is behind it.
fn read_tail(file: &File) -> io::Result<(Option<Head>, Option<Torn>)> {
    let len = file.metadata()?.len();
    let from = len.saturating_sub(WINDOW);
    let mut bytes = vec![0; usize::try_from(len - from).unwrap_or_default()];
    file.read_exact_at(&mut bytes, from)?;
    let open = bytes.last().is_some_and(|last| *last != b'\n');
    let mut behind = 0;
    let mut last = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n').rev() {
        last = Record::parse(line.strip_suffix(b"\n").unwrap_or(line)).map(|record| record.head());
        if last.is_some() {
            break;
        }
        behind += line.len();
    }
    let behind = &bytes[bytes.len() - behind..];
    let begun = BEGINNING.starts_with(behind) || behind.starts_with(BEGINNING);
    if last.is_none() && !(from == 0 && begun) {
        let message = "it holds something else than audit records; choose another file";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut hasher = Hasher::new();
    hasher.update(behind);
    if open {
        hasher.update(b"\n");
    }
    let bytes = match behind.len() as u64 {
        0 => 0,
        bytes => bytes + u64::from(open),
    };
    let digest = hasher.finish();
    let torn = Torn {
        bytes,
        digest,
        open,
    };
    Ok((last, (bytes > 0 || open).then_some(torn)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn drafts(count: usize) -> Vec<Draft> {
        (0..count)
            .map(|n| super::super::note("e", json!({ "n": n })))
            .collect()
    }

    fn append(trail: &mut Trail, count: usize) {
        trail.append(&drafts(count), Some(&Seal::Plain)).unwrap();
    }

    fn records(path: &Path) -> Vec<(u64, String)> {
        let text = std::fs::read_to_string(path).unwrap();
        let record = |line: &str| {
            let record = Record::parse(line.as_bytes())?;
            Some((record.seq, record.text("event")?.to_owned()))
        };
        text.lines().filter_map(record).collect()
    }

    #[test]
    fn it_goes_on_after_a_restart_and_in_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut trail = Trail::open(&path, None).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        append(&mut trail, 2);
        let head = trail.head();
        assert!(Trail::open(&path, None).is_err(), "two writers");
        drop(trail);
        let mut trail = Trail::open(&path, None).unwrap();
        assert_eq!(trail.head(), head);
        append(&mut trail, 1);
        assert!(trail.is_in_place());
        let head = trail.head();
        std::fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
        assert!(!trail.is_in_place());
        drop(trail);
        // Moved away while nobody wrote.
        let mut trail = Trail::open(&path, None).unwrap();
        assert_eq!(trail.head(), head);
        append(&mut trail, 1);
        assert_eq!(records(&path), [(4, "e".to_owned())]);
    }

    #[test]
    fn a_torn_line_is_closed_by_a_record_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        append(&mut Trail::open(&path, None).unwrap(), 2);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in [3, first - 5, first - 1, first + 9, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            std::fs::remove_file(head_path(&path)).unwrap();
            append(&mut Trail::open(&path, None).unwrap(), 1);
            let text = std::fs::read_to_string(&path).unwrap();
            let closed = cut != first - 1 && cut != whole.len() - 1;
            assert_eq!(text.contains("audit_torn"), closed, "{cut}: {text}");
            assert!(text.ends_with("}\n"));
            let expected = (cut >= first - 1) as u64 + (cut >= whole.len() - 1) as u64;
            assert_eq!(records(&path)[expected as usize].0, expected + 1);
        }
    }

    #[test]
    fn an_end_that_was_cut_leaves_a_hole_in_the_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        append(&mut Trail::open(&path, None).unwrap(), 3);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        std::fs::write(&path, &whole[..first]).unwrap();
        append(&mut Trail::open(&path, None).unwrap(), 1);
        let seqs: Vec<_> = records(&path).into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(seqs, [1, 4]);
    }

    #[test]
    fn other_files_are_left_alone_and_a_full_disk_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        std::fs::write(&path, "Jan  1 00:00:00 host login\n").unwrap();
        let error = Trail::open(&path, None).unwrap_err().to_string();
        assert!(error.contains("something else"), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut trail = Trail::open(&path, None).unwrap();
        let failed = trail.append(&drafts(3), Some(&Seal::Plain)).unwrap_err();
        assert_eq!(failed.written, 0);
        assert_eq!(failed.error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(trail.head(), Head::START);
    }
}
