//! What a schema tells of a key.

/// A key of a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// Path: `tunnel.port`, `listeners[].bind`, `targets.<name>.host`.
    pub key: String,
    /// What is expected of one value: `an integer`.
    pub kind: &'static str,
    /// What is allowed, in words: bounds, words, form, and whether it is a list.
    pub allowed: String,
    /// The default, empty if there is none; `None` = the key is required.
    pub default: Option<String>,
    /// Whether the value is masked and `<key>_file` may name a file that holds it.
    pub secret: bool,
}
