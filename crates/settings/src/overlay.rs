//! The environment over the file: `${VAR}` inside values, documented variables, and
//! `NOWCONNECT__SECTION__KEY` for any key.

use std::sync::Arc;

use crate::node::{Content, Entry, Node, Origin, Scalar, Style};
use crate::problem::Problem;
use crate::source::Env;
use crate::yaml::parse_yaml;

/// Begins the variables that can set any key.
pub(crate) const PREFIX: &str = "NOWCONNECT__";

/// A documented environment variable for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Name of the variable.
    pub var: &'static str,
    /// Path of the key: `observability.log_level`.
    pub key: &'static str,
}

impl Alias {
    /// The variable `var` for `key`.
    pub const fn new(var: &'static str, key: &'static str) -> Self {
        Self { var, key }
    }
}

/// Lays the documented variables and then the general ones over `root`.
pub(crate) fn overlay(root: &mut Node, env: &Env, aliases: &[Alias]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for alias in aliases {
        // OpenTelemetry has empty variables be as good as none; ours are text or wrong.
        let counts = |text: &&str| !text.is_empty() || !alias.var.starts_with("OTEL_");
        if let Some(text) = env.get(alias.var).filter(counts) {
            let path: Vec<_> = alias.key.split('.').collect();
            problems.extend(set(root, &path, alias.var, text));
        }
    }
    // In order of name, so a section as a whole comes before its keys.
    for (var, text) in env.iter() {
        let Some(name) = var.strip_prefix(PREFIX) else {
            continue;
        };
        let name = name.to_lowercase();
        problems.extend(set(root, &name.split("__").collect::<Vec<_>>(), var, text));
    }
    problems
}

/// Sets the value at `path` from a variable, making sections on the way. A step matches an existing
/// key in any case, with `_` for the `-` and `.` that names of variables cannot have.
pub(crate) fn set(root: &mut Node, path: &[&str], var: &str, text: &str) -> Vec<Problem> {
    let origin = Origin::Env(Arc::from(var));
    let mut node = root;
    for (depth, step) in path.iter().enumerate() {
        let Some(entries) = node.section_mut() else {
            let problem = Problem::new("this is not a section, so it has no keys of its own");
            return vec![at(problem, &origin, &path[..depth])];
        };
        let position = entries.iter().position(|entry| entry.key == *step);
        let position = position.or_else(|| entries.iter().position(|e| loosely(&e.key, step)));
        let position = position.unwrap_or_else(|| {
            let node = Node {
                origin: origin.clone(),
                content: Content::Map(Vec::new()),
            };
            entries.push(Entry {
                key: (*step).to_owned(),
                origin: origin.clone(),
                node,
            });
            entries.len() - 1
        });
        node = &mut entries[position].node;
    }
    let (scalar, problems) = untyped(&origin, text, None);
    *node = Node {
        origin: origin.clone(),
        content: Content::Scalar(scalar),
    };
    problems
        .into_iter()
        .map(|problem| at(problem, &origin, path))
        .collect()
}

fn at(problem: Problem, origin: &Origin, path: &[&str]) -> Problem {
    let Origin::Env(var) = origin else {
        return problem;
    };
    let key = [path, &[problem.key.as_str()]].concat().join(".");
    let key = key.trim_end_matches('.').to_owned();
    Problem {
        env: Some(var.to_string()),
        line: 0,
        column: 0,
        key,
        ..problem
    }
}

/// Whether `step`, from the name of a variable, means `key`: in any case, with `_` for the `-` and
/// `.` that names of variables cannot have.
pub fn loosely(key: &str, step: &str) -> bool {
    let plain = |c: char| match c {
        '-' | '.' => '_',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(plain).eq(step.chars().map(plain))
}

/// A scalar that takes the type its key wants, be it a list or map written as JSON.
fn untyped(origin: &Origin, text: &str, written: Option<String>) -> (Scalar, Vec<Problem>) {
    let mut scalar = Scalar {
        text: text.trim().to_owned(),
        written,
        style: Style::Untyped,
        literal: None,
    };
    if !scalar.text.starts_with(['[', '{']) {
        return (scalar, Vec::new());
    }
    let (tree, problems) = parse_yaml(&scalar.text);
    match tree {
        Some(mut tree) if !matches!(tree.content, Content::Scalar(_)) => {
            tree.relocate(origin);
            scalar.literal = Some(Box::new(tree));
            (scalar, problems)
        }
        // Perhaps text is wanted (`[::1]:80`); else the key says what it wants.
        _ => (scalar, Vec::new()),
    }
}

impl Node {
    /// The entries of a section; nothing and a JSON object in text become one.
    fn section_mut(&mut self) -> Option<&mut Vec<Entry>> {
        if let Content::Scalar(scalar) = &mut self.content {
            if let Some(literal) = scalar.literal.take() {
                *self = *literal;
            } else if self.is_null() {
                self.content = Content::Map(Vec::new());
            }
        }
        match &mut self.content {
            Content::Map(entries) => Some(entries),
            _ => None,
        }
    }

    fn relocate(&mut self, to: &Origin) {
        self.origin = to.clone();
        match &mut self.content {
            Content::Scalar(_) => {}
            Content::List(items) => items.iter_mut().for_each(|item| item.relocate(to)),
            Content::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.origin = to.clone();
                entry.node.relocate(to);
            }),
        }
    }
}

/// Replaces `${VAR}` and `${VAR:-default}` inside every scalar; `$${` stands for `${`.
pub(crate) fn substitute(node: &mut Node, key: &str, env: &Env, problems: &mut Vec<Problem>) {
    let origin = node.origin.clone();
    match &mut node.content {
        Content::Scalar(scalar) if scalar.text.contains("${") => {
            let written = scalar.text.clone();
            let report = |problem: Problem| match origin {
                Origin::File { line, column } => Problem {
                    line,
                    column,
                    key: key.to_owned(),
                    ..problem
                },
                Origin::Env(_) => problem,
            };
            match replaced(&written, env) {
                Ok((text, true)) => {
                    let (value, found) = untyped(&node.origin, &text, Some(written));
                    *scalar = value;
                    problems.extend(found.into_iter().map(report));
                }
                Ok((text, false)) => scalar.text = text,
                // Left unset, so that nothing more is said about it.
                Err(problem) => {
                    problems.push(report(*problem));
                    *scalar = untyped(&node.origin, "", Some(written)).0;
                }
            }
        }
        Content::Scalar(_) => {}
        Content::List(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                substitute(item, &format!("{key}[{i}]"), env, problems);
            }
        }
        Content::Map(entries) => {
            for entry in entries {
                let dot = if key.is_empty() { "" } else { "." };
                substitute(
                    &mut entry.node,
                    &format!("{key}{dot}{}", entry.key),
                    env,
                    problems,
                );
            }
        }
    }
}

/// The text with variables put in, and whether there were any.
fn replaced(text: &str, env: &Env) -> Result<(String, bool), Box<Problem>> {
    let (mut out, mut rest, mut any) = (String::new(), text, false);
    while let Some(start) = rest.find("${") {
        if let Some(before) = rest[..start].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        out.push_str(&rest[..start]);
        let end = rest[start..].find('}').ok_or_else(|| {
            let problem = Problem::new("`${` without its `}`");
            problem.hint("write $${ where ${ itself is meant")
        })?;
        let inside = &rest[start + 2..start + end];
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(valid) {
            let problem = Problem::new("`${...}` holds no name of a variable");
            return Err(problem.hint("write ${NAME} or ${NAME:-default}").into());
        }
        let value = env.get(name).or(default).ok_or_else(|| {
            let problem = Problem::new(format!("the environment variable {name} is not set"));
            problem.hint(format!("set it, or write ${{{name}:-default}}"))
        })?;
        out.push_str(value);
        any = true;
        rest = &rest[start + end + 1..];
    }
    out.push_str(rest);
    Ok((out, any))
}
