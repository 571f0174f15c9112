//! What one value must be, and how a node of the document becomes it.

use crate::node::{Content, Node, Style, plain_kind};
use crate::problem::Problem;
use crate::suggest::closest;
use crate::value::Value;

/// What a value must be besides its type.
pub(crate) struct Rule<T> {
    /// Whether it must not be shown.
    pub(crate) secret: bool,
    /// What is allowed, in words; empty = everything.
    pub(crate) bounds: String,
    pub(crate) allowed: Box<dyn Fn(&T) -> bool>,
}

impl<T: Value> Default for Rule<T> {
    fn default() -> Self {
        Self {
            secret: false,
            bounds: T::WORDS.join(", "),
            allowed: Box::new(|_| true),
        }
    }
}

impl<T: Value> Rule<T> {
    /// The value of a node; the problem has no place yet.
    pub(crate) fn convert(&self, node: &Node) -> Result<T, Box<Problem>> {
        let Content::Scalar(scalar) = &node.content else {
            return Err(self.wrong(node, "", None));
        };
        let text = scalar.text.as_str();
        let value = match scalar.style {
            Style::Untyped => T::parse_untyped(text),
            Style::Plain | Style::Quoted => T::parse(text),
        };
        let looks_other = match scalar.style {
            Style::Plain => T::TEXT && (node.is_null() || plain_kind(text).is_some()),
            Style::Quoted => !T::TEXT,
            Style::Untyped => false,
        };
        match value {
            Ok(_) if looks_other && T::TEXT => Err(self.wrong(node, "", Some("put it in quotes"))),
            Ok(_) if looks_other => Err(self.wrong(node, "", Some("remove the quotes"))),
            Ok(value) if (self.allowed)(&value) => Ok(value),
            Ok(_) => Err(self.wrong(node, "", None)),
            Err(detail) => {
                let near = closest(text, T::WORDS.iter().copied());
                let near = near.map(|word| format!("did you mean {word}?"));
                Err(self.wrong(node, &detail, near.as_deref()))
            }
        }
    }

    fn wrong(&self, node: &Node, detail: &str, hint: Option<&str>) -> Box<Problem> {
        let mut message = format!("expected {}", T::KIND);
        if !self.bounds.is_empty() {
            message.push_str(&format!(" ({})", self.bounds));
        }
        message.push_str(&format!(", found {}", node.describe(self.secret)));
        if !detail.is_empty() {
            message.push_str(&format!(": {detail}"));
        }
        let hint = hint.map(str::to_owned);
        let problem = Problem::new(message);
        Box::new(Problem { hint, ..problem })
    }
}
