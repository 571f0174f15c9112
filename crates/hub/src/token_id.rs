//! What may name a token in records, here and at other hubs.

/// Characters of the longest name of a token.
const MAX_TOKEN_ID: usize = 64;

/// Whether `id` may name a token in records.
pub(crate) fn is_token_id(id: &str) -> bool {
    (1..=MAX_TOKEN_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}
