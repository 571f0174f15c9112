//! Reads a trail from its first line to its last, in constant memory, and finds what is wrong.

use std::io::{self, BufRead, Read as _};

use super::record::{Hasher, Head, Record, Seal};
use super::report::{Place, Problem, Report};

/// Longest line that is looked at; records are shorter.
const MAX_LINE: usize = 1024 * 1024;

/// Judges a trail.
pub(super) struct Verifier {
    seals: Vec<Seal>,
    report: Report,
    /// The record that the next one follows; `None`: whichever the first one names.
    at: Option<Head>,
    /// What must be there, until it was.
    wanted: Option<Head>,
    /// Lines that are no records.
    odd: Option<Odd>,
    place: Place,
}

/// Lines that are no records and follow each other.
struct Odd {
    place: Place,
    bytes: u64,
    hasher: Hasher,
    /// The last of them ends with the file and without a newline.
    open: bool,
}

impl Verifier {
    /// Judges by `keys`, or without any by plain hashes.
    pub(super) fn new(
        keys: Vec<Seal>,
        after: Option<Head>,
        wanted: Option<Head>,
        report: Report,
    ) -> Self {
        let seals = match keys.is_empty() {
            true => vec![Seal::Plain],
            false => keys,
        };
        Self {
            seals,
            report,
            at: after,
            wanted,
            odd: None,
            place: Place::default(),
        }
    }

    /// Goes on with the next file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read(&mut self, name: &str, mut file: impl BufRead) -> io::Result<()> {
        self.report.files += 1;
        self.place = Place {
            file: name.to_owned(),
            ..Place::default()
        };
        let mut line = Vec::new();
        loop {
            line.clear();
            let most = MAX_LINE as u64;
            if file.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            self.place.line += 1;
            self.place.seq = None;
            // A longer line comes in pieces, none of which is a record.
            match line.strip_suffix(b"\n") {
                Some(whole) => match Record::parse(whole) {
                    Some(record) => self.judge(&record),
                    None => self.note_odd(&line),
                },
                None => self.judge_open(&line),
            }
        }
    }

    /// A line without an end.
    fn judge_open(&mut self, line: &[u8]) {
        match Record::parse(line) {
            Some(record) => {
                self.judge(&record);
                let detail = "the newline behind the record is missing";
                self.report.add(&self.place, Problem::Torn, detail);
            }
            None => self.note_odd(line),
        }
    }

    fn note_odd(&mut self, line: &[u8]) {
        let place = &self.place;
        let odd = self.odd.get_or_insert_with(|| Odd {
            place: place.clone(),
            bytes: 0,
            hasher: Hasher::new(),
            open: false,
        });
        odd.bytes += line.len() as u64;
        odd.hasher.update(line);
        odd.open = !line.ends_with(b"\n");
    }

    fn judge(&mut self, record: &Record<'_>) {
        self.place.seq = Some(record.seq);
        self.report.records += 1;
        self.report.first.get_or_insert(record.seq);
        self.explain_odd(Some(record));
        self.judge_hash(record);
        let head = record.head();
        if self.follows(record) {
            self.at = Some(head);
            self.report.last = Some(head);
        }
        if let Some(wanted) = self.wanted.filter(|wanted| wanted.seq == record.seq) {
            self.wanted = None;
            if wanted != head {
                let detail = format!("the head that was named has the hash {}", wanted.hash);
                self.report.add(&self.place, Problem::Head, detail);
            }
        }
        if record.text("event") == Some("audit_gap") {
            let lost = record.number("lost").unwrap_or_default();
            let reason = record.text("reason").unwrap_or_default().escape_debug();
            let detail = format!("the hub lost {lost} records ({reason})");
            self.report.add(&self.place, Problem::Gap, detail);
        }
    }

    fn judge_hash(&mut self, record: &Record<'_>) {
        let Some(link) = &record.link else {
            let keyed = !matches!(self.seals[..], [Seal::Plain]);
            if self.report.chained || keyed {
                let detail = "the record has no hash";
                self.report.add(&self.place, Problem::Unchained, detail);
            }
            return;
        };
        if self.report.records == 1 {
            self.report.chained = true;
        } else if !self.report.chained {
            let detail = "the record has a hash and those before have none";
            self.report.add(&self.place, Problem::Unchained, detail);
            self.report.chained = true;
        }
        match self.seals.iter().position(|seal| link.fits(seal)) {
            // The same one fits the next, most likely.
            Some(at) => self.seals.swap(0, at),
            None => {
                let detail = match self.seals[..] {
                    [Seal::Plain] => {
                        "the hash is not that of the record (or a key was used: --key-file)"
                    }
                    _ => "the hash is not that of the record under the key given",
                };
                self.report.add(&self.place, Problem::Changed, detail);
            }
        }
    }

    /// Whether the trail goes on from this record.
    fn follows(&mut self, record: &Record<'_>) -> bool {
        let prev = record.link.as_ref().map(|link| link.prev);
        let Some(at) = self.at.or((record.seq == 1).then_some(Head::START)) else {
            return true;
        };
        let next = at.seq + 1;
        if record.seq < next {
            // Its `prev` tells a new trail from a record of this one.
            let anew = record.seq == 1 && prev.is_none_or(|prev| prev == Head::START.hash);
            let (problem, detail) = match anew {
                true => (
                    Problem::Restarted,
                    format!(
                        "a new trail begins here; {} was the last of the old one",
                        at.seq
                    ),
                ),
                false => (
                    Problem::Reordered,
                    format!("the record belongs in front of {next}, or is there twice"),
                ),
            };
            self.report.add(&self.place, problem, detail);
            return anew;
        }
        if record.seq > next {
            let (missing, last) = (record.seq - next, record.seq - 1);
            let detail = match missing {
                1 => format!("record {next} is not in front of it"),
                _ => format!("{missing} records, {next} to {last}, are not in front of it"),
            };
            self.report.add(&self.place, Problem::Missing, detail);
        } else if prev.is_some_and(|prev| prev != at.hash) {
            let detail =
                "it does not name the hash of the record before: one of the two was replaced";
            self.report.add(&self.place, Problem::Unlinked, detail);
        }
        true
    }

    /// Lines that were no records: the hub says what they are, or somebody changed them.
    fn explain_odd(&mut self, next: Option<&Record<'_>>) {
        let Some(odd) = self.odd.take() else { return };
        let Odd {
            place,
            bytes,
            hasher,
            open,
        } = odd;
        let digest = hasher.finish().to_string();
        let closed = next.is_some_and(|next| {
            next.text("event") == Some("audit_torn")
                && next.number("bytes") == Some(bytes)
                && next.text("sha256") == Some(&digest)
        });
        let (problem, detail) = match (closed, open) {
            (true, _) => (
                Problem::Gap,
                "a record was not written to its end, as the next one says",
            ),
            (false, true) => (Problem::Torn, "the last line is no whole record"),
            (false, false) => (Problem::Changed, "the line is no audit record"),
        };
        self.report.add(&place, problem, detail);
    }

    /// What became of it.
    pub(super) fn finish(mut self) -> Report {
        self.explain_odd(None);
        if let Some(wanted) = self.wanted {
            let last = self.at.map_or(0, |at| at.seq);
            let detail = match self.report.first {
                Some(first) if wanted.seq < first => {
                    format!("the trail begins with {first}, behind {}", wanted.seq)
                }
                _ if wanted.seq > last => {
                    format!("the trail ends with {last}, before {}", wanted.seq)
                }
                _ => format!("there is no record {}", wanted.seq),
            };
            self.report.add(&self.place, Problem::Head, detail);
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Digest;
    use super::*;
    use std::sync::Arc;

    use aws_lc_rs::hmac;
    use proptest::prelude::*;
    use serde_json::json;

    fn keyed(key: &[u8]) -> Seal {
        Seal::Keyed(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    fn trail(count: usize, seal: Option<&Seal>) -> (Vec<u8>, Head) {
        let (mut out, mut head) = (Vec::new(), Head::START);
        for n in 0..count {
            let draft = super::super::note("flow_closed", json!({ "n": n, "client": "10.0.0.1" }));
            draft.write(&mut out, &mut head, seal);
        }
        (out, head)
    }

    fn judge(files: &[&[u8]], keys: Vec<Seal>, wanted: Option<Head>) -> Report {
        let mut verifier = Verifier::new(keys, None, wanted, Report::new(false));
        for (n, file) in files.iter().enumerate() {
            verifier.read(&format!("f{n}"), *file).unwrap();
        }
        verifier.finish()
    }

    fn problems(files: &[&[u8]]) -> Vec<(Problem, u64)> {
        let report = judge(files, Vec::new(), None);
        assert_eq!(report.is_whole(false), report.findings.is_empty());
        let findings = report.findings.iter();
        findings
            .map(|finding| (finding.problem, finding.place.line))
            .collect()
    }

    fn lines(trail: &[u8]) -> Vec<&[u8]> {
        trail.split_inclusive(|byte| *byte == b'\n').collect()
    }

    #[test]
    fn a_whole_trail_is_whole_in_one_file_or_several() {
        let (whole, head) = trail(7, Some(&Seal::Plain));
        assert!(judge(&[&whole], Vec::new(), Some(head)).is_whole(false));
        let at = lines(&whole)[..3].concat().len();
        assert!(judge(&[&whole[..at], &whole[at..]], Vec::new(), None).is_whole(false));
        let rest = judge(&[&whole[at..]], Vec::new(), None);
        assert!(rest.is_whole(false) && rest.first == Some(4));
        assert!(!judge(&[&whole[at..], &whole[..at]], Vec::new(), None).is_whole(true));
        assert!(!judge(&[b""], Vec::new(), None).is_whole(true), "nothing");
        let (unchained, _) = trail(7, None);
        let report = judge(&[&unchained], Vec::new(), None);
        assert!(report.is_whole(false) && !report.chained);
    }

    #[test]
    fn a_changed_byte_is_found_wherever_it_is() {
        let (whole, _) = trail(3, Some(&Seal::Plain));
        for at in 0..whole.len() {
            for flip in [1, 0x20, 0x80] {
                let mut changed = whole.clone();
                changed[at] ^= flip;
                let report = judge(&[&changed], Vec::new(), None);
                assert!(!report.is_whole(true), "{at} {flip}");
                let line = 1 + whole[..at].iter().filter(|byte| **byte == b'\n').count() as u64;
                let found = report.findings[0].place.line;
                assert!(found == line || found == line + 1, "{at}: {found}");
            }
        }
    }

    #[test]
    fn what_was_done_to_it_is_named() {
        let (whole, head) = trail(5, Some(&Seal::Plain));
        let l = lines(&whole);
        let of = |parts: &[&[u8]]| problems(&[&parts.concat()]);
        assert_eq!(of(&[l[0], l[2], l[3], l[4]]), [(Problem::Missing, 2)]);
        assert_eq!(of(&[l[0], l[1], l[1], l[2]]), [(Problem::Reordered, 3)]);
        assert_eq!(
            of(&[l[0], l[2], l[1], l[3]]),
            [(Problem::Missing, 2), (Problem::Reordered, 3)]
        );
        assert_eq!(of(&[l[0], b"x\n", l[1]]), [(Problem::Changed, 2)]);
        assert_eq!(of(&[l[0], &l[1][..20]]), [(Problem::Torn, 2)]);
        assert_eq!(of(&[l[0], &l[1][..l[1].len() - 1]]), [(Problem::Torn, 2)]);
        assert_eq!(of(&[l[0], l[1], l[0], l[1]]), [(Problem::Restarted, 3)]);
        let cut = judge(&[&l[..4].concat()], Vec::new(), Some(head));
        assert_eq!(cut.findings[0].problem, Problem::Head);
        assert!(cut.findings[0].detail.contains("ends with 4, before 5"));
        // Somebody computes the later hashes anew: a head from outside tells.
        let (mut forged, mut end) = (l[..3].concat(), Head::START);
        let third = Record::parse(l[2].strip_suffix(b"\n").unwrap()).unwrap();
        end.seq = third.seq;
        end.hash = third.head().hash;
        for n in 0..2 {
            let draft = super::super::note("flow_closed", json!({ "n": n }));
            draft.write(&mut forged, &mut end, Some(&Seal::Plain));
        }
        assert!(judge(&[&forged], Vec::new(), None).is_whole(false));
        assert!(!judge(&[&forged], Vec::new(), Some(head)).is_whole(true));
    }

    #[test]
    fn only_the_right_key_fits() {
        let (one, other) = (keyed(b"0123456789abcdef"), keyed(b"fedcba9876543210"));
        let (whole, _) = trail(4, Some(&one));
        assert!(judge(&[&whole], vec![one.clone()], None).is_whole(false));
        assert!(judge(&[&whole], vec![other.clone(), one.clone()], None).is_whole(false));
        for keys in [Vec::new(), vec![other]] {
            let report = judge(&[&whole], keys, None);
            assert_eq!(report.findings.len(), 4);
            assert!(report.findings[0].detail.contains("key"));
        }
        let (plain, _) = trail(4, Some(&Seal::Plain));
        assert!(!judge(&[&plain], vec![one.clone()], None).is_whole(true));
        let (unchained, _) = trail(4, None);
        assert!(!judge(&[&unchained], vec![one], None).is_whole(true));
    }

    /// Whoever wrote it wants the command to fall over, or to steer the terminal.
    #[test]
    fn a_trail_that_was_made_up_is_judged_like_any_other() {
        let of = |seq: u64| format!("{{\"seq\":{seq},\"event\":\"x\"}}\n");
        let all = [of(u64::MAX - 1), of(u64::MAX), of(3)].concat();
        assert_eq!(
            problems(&[all.as_bytes()]),
            [(Problem::Changed, 2), (Problem::Reordered, 3)]
        );
        let (mut gap, mut head) = (Vec::new(), Head::START);
        let fields = json!({ "lost": 1, "reason": "\u{1b}[2J\n" });
        super::super::note("audit_gap", fields).write(&mut gap, &mut head, Some(&Seal::Plain));
        let report = judge(&[&gap], Vec::new(), None);
        assert!(!report.findings[0].detail.contains(char::is_control));
    }

    #[test]
    fn gaps_that_the_hub_tells_of_can_be_accepted() {
        let (mut whole, mut head) = trail(2, Some(&Seal::Plain));
        let gap = super::super::note("audit_gap", json!({ "lost": 7, "reason": "x" }));
        gap.write(&mut whole, &mut head, Some(&Seal::Plain));
        whole.extend_from_slice(b"{\"ts\":\"to\n");
        let mut hasher = Hasher::new();
        hasher.update(b"{\"ts\":\"to\n");
        let digest: Digest = hasher.finish();
        let fields = json!({ "bytes": 10, "sha256": digest.to_string() });
        let torn = super::super::note("audit_torn", fields);
        torn.write(&mut whole, &mut head, Some(&Seal::Plain));
        let report = judge(&[&whole], Vec::new(), None);
        assert!(report.is_whole(true) && !report.is_whole(false));
        assert_eq!(report.findings.len(), 2);
        // Nobody can add to what was torn, or change it.
        let at = whole
            .windows(8)
            .position(|bytes| bytes == b"{\"ts\":\"t")
            .unwrap();
        let torn_at = whole
            .windows(4)
            .rposition(|bytes| bytes == b"\"to\n")
            .unwrap();
        assert!(torn_at > at || at > 0);
        whole[torn_at + 1] ^= 1;
        assert!(!judge(&[&whole], Vec::new(), None).is_whole(true));
    }

    proptest! {
        /// Whatever is cut out, doubled, swapped or overwritten.
        #[test]
        fn no_change_is_missed(
            from in 0usize..2000,
            len in 1usize..400,
            kind in 0u8..4,
            byte: u8,
        ) {
            let (whole, head) = trail(6, Some(&Seal::Plain));
            let from = from % whole.len();
            let to = (from + len).min(whole.len());
            let mut changed = whole.clone();
            match kind {
                0 => { changed.drain(from..to); }
                1 => { changed.splice(from..from, whole[from..to].to_vec()); }
                2 => changed[from..to].reverse(),
                _ => changed[from] = byte,
            }
            let report = judge(&[&changed], Vec::new(), Some(head));
            prop_assert_eq!(report.is_whole(true), changed == whole);
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            judge(&[&bytes], Vec::new(), None);
        }
    }
}
