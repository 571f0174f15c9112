//! The Prometheus text format, as much of it as a test asks about.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    samples: Vec<Sample>,
    types: BTreeMap<String, String>,
    help: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    /// Parses a text exposition; strict, because a scraper is.
    ///
    /// # Errors
    /// Names the first line that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut scrape = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix('#') {
                let mut words = comment.trim_start().splitn(3, ' ');
                let table = match words.next() {
                    Some("TYPE") => &mut scrape.types,
                    Some("HELP") => &mut scrape.help,
                    _ => continue,
                };
                let name = words.next().with_context(|| format!("no name: {line}"))?;
                table.insert(name.to_owned(), words.next().unwrap_or_default().to_owned());
            } else {
                scrape
                    .samples
                    .push(Sample::parse(line).with_context(|| line.to_owned())?);
            }
        }
        Ok(scrape)
    }

    /// The sum of all series of `name` that carry `labels`; `None` when there is no such series.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut values = self
            .samples
            .iter()
            .filter(|s| s.matches(name, labels))
            .peekable();
        values.peek()?;
        Some(values.map(|sample| sample.value).sum())
    }

    /// [`Scrape::get`], with a series that does not exist counted as zero.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or_default()
    }

    /// The names that have a `# TYPE` line, as they stand there.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.types.keys().map(String::as_str)
    }

    /// The help text of a family.
    pub fn help(&self, family: &str) -> Option<&str> {
        self.help.get(family).map(String::as_str)
    }
}

impl Sample {
    fn parse(line: &str) -> Result<Self> {
        let name_end = line.find(['{', ' ']).context("no value")?;
        let (name, mut rest) = line.split_at(name_end);
        let mut labels = BTreeMap::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            while !rest.starts_with('}') {
                let (label, after) = rest.split_once("=\"").context("label without a value")?;
                let (value, after) = quoted(after)?;
                labels.insert(label.trim_start_matches(',').to_owned(), value);
                rest = after;
            }
            rest = &rest[1..];
        }
        let value = rest.split_whitespace().next().context("no value")?;
        let value = value
            .parse()
            .with_context(|| format!("not a number: {value}"))?;
        Ok(Self {
            name: name.to_owned(),
            labels,
            value,
        })
    }

    fn matches(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.name == name
            && labels
                .iter()
                .all(|(k, v)| self.labels.get(*k).is_some_and(|have| have == v))
    }
}

/// Reads a label value up to its closing quote; returns what follows too.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            other => value.push(other),
        }
    }
    bail!("label value without an end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_over_the_labels_not_asked_for() {
        let text = "# HELP a_total Things.\n# TYPE a_total counter\n\
                    a_total{x=\"1\",y=\"q\\\"}\"} 2\na_total{x=\"1\",y=\"b\"} 3 1700000000\n\
                    a_total{x=\"2\"} 5\nb +Inf\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!(scrape.get("a_total", &[("x", "1")]), Some(5.0));
        assert_eq!(scrape.get("a_total", &[("y", "q\"}")]), Some(2.0));
        assert_eq!(scrape.sum("a_total", &[]), 10.0);
        assert_eq!(scrape.get("a_total", &[("x", "3")]), None);
        assert_eq!(scrape.get("b", &[]), Some(f64::INFINITY));
        assert_eq!(scrape.help("a_total"), Some("Things."));
        assert!(Scrape::parse("a{x=1} 2").is_err());
    }
}
