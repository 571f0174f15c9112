//! What is wrong with a trail, and where.

use serde_json::{Value, json};

use super::record::Head;

/// Findings that are shown; the rest is counted.
const MOST_SHOWN: u64 = 100;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// A record does not have the hash that it says, or is none.
    Changed,
    /// A record does not follow the one before.
    Unlinked,
    /// Records are not there.
    Missing,
    /// A record is not where its number says.
    Reordered,
    /// A line was not written to its end.
    Torn,
    /// The hub says that it could not write records, or not to their end.
    Gap,
    /// The trail starts anew.
    Restarted,
    /// Records without hashes among others, or where a key was given.
    Unchained,
    /// The record that had to be there is not.
    Head,
}

impl Problem {
    fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unlinked => "unlinked",
            Self::Missing => "missing",
            Self::Reordered => "reordered",
            Self::Torn => "torn",
            Self::Gap => "gap_recorded",
            Self::Restarted => "restarted",
            Self::Unchained => "unchained",
            Self::Head => "head",
        }
    }
}

/// Where something is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: String,
    /// From 1.
    pub(super) line: u64,
    /// As the record says, if there is one.
    pub(super) seq: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Finding {
    pub(super) place: Place,
    pub(super) problem: Problem,
    pub(super) detail: String,
}

/// What was found out about a trail. It grows no further than a bound, however much is wrong.
#[derive(Debug)]
pub(super) struct Report {
    /// Print findings as they come.
    prints: bool,
    pub(super) findings: Vec<Finding>,
    broken: u64,
    gaps: u64,
    pub(super) files: u64,
    pub(super) records: u64,
    pub(super) chained: bool,
    pub(super) first: Option<u64>,
    pub(super) last: Option<Head>,
}

impl Report {
    pub(super) fn new(prints: bool) -> Self {
        Self {
            prints,
            findings: Vec::new(),
            broken: 0,
            gaps: 0,
            files: 0,
            records: 0,
            chained: false,
            first: None,
            last: None,
        }
    }

    pub(super) fn add(&mut self, place: &Place, problem: Problem, detail: impl Into<String>) {
        match problem {
            Problem::Gap => self.gaps += 1,
            _ => self.broken += 1,
        }
        let finding = Finding {
            place: place.clone(),
            problem,
            detail: detail.into(),
        };
        let total = self.gaps + self.broken;
        if self.prints && total <= MOST_SHOWN {
            println!("{}", finding.line());
        }
        if total <= MOST_SHOWN {
            self.findings.push(finding);
        }
    }

    pub(super) fn is_whole(&self, accept_gaps: bool) -> bool {
        self.broken == 0 && self.records > 0 && (accept_gaps || self.gaps == 0)
    }

    /// The last line for people.
    pub(super) fn summary(&self, whole: bool) -> String {
        let hidden = (self.broken + self.gaps).saturating_sub(MOST_SHOWN);
        let more = match hidden {
            0 => String::new(),
            more => format!("... and {more} more\n"),
        };
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return format!("{more}NOT WHOLE: there are no records");
        };
        let what = match (whole, self.chained) {
            (true, true) => "whole".to_owned(),
            (true, false) => "complete, but not chained: nothing shows what was changed".to_owned(),
            (false, _) => format!(
                "NOT WHOLE: {} broken, {} recorded as lost",
                self.broken, self.gaps
            ),
        };
        let (records, files) = (self.records, self.files);
        let begins = match first {
            1 => String::new(),
            _ => format!("; what came before {first} was not given"),
        };
        format!(
            "{more}{what}: {records} records in {files} files, {first} to {}{begins}\nhead {last}",
            last.seq
        )
    }

    pub(super) fn to_json(&self, whole: bool) -> Value {
        let findings = self.findings.iter().map(|finding| {
            let Place { file, line, seq } = &finding.place;
            json!({
                "file": file, "line": line, "seq": seq,
                "problem": finding.problem.name(), "detail": finding.detail,
            })
        });
        json!({
            "whole": whole,
            "chained": self.chained,
            "records": self.records,
            "files": self.files,
            "first": self.first,
            "head": self.last.map(|head| head.to_string()),
            "broken": self.broken,
            "gaps": self.gaps,
            "findings": findings.collect::<Vec<_>>(),
        })
    }
}

impl Finding {
    fn line(&self) -> String {
        let Place { file, line, seq } = &self.place;
        let seq = seq.map_or(String::new(), |seq| format!(" seq {seq}:"));
        let (problem, detail) = (self.problem.name(), &self.detail);
        format!("{file}:{line}:{seq} {problem}: {detail}")
    }
}
