//! The admin API's part of [`crate::fuzzing`].

use serde_json::{Value, json};

use super::cluster::{self, Part};
use super::query::Query;
use super::route::Route;
use super::{history, merge, path};

/// What a request asks for: how many items at most, and the query that would be asked of another hub.
/// `None` when there is no such path.
///
/// # Errors
/// What is wrong with the query.
pub fn request(path: &str, query: &str) -> Option<Result<(usize, String), String>> {
    let route = Route::parse(path)?;
    let query = Query::parse(query, route);
    Some(query.map(|query| (query.limit(), query.for_a_peer())))
}

/// Every answer that is made of what other hubs said. What is no answer is left out.
pub fn merged(said: &[&[u8]]) -> Value {
    let told = said.iter().filter_map(|said| cluster::read(said).ok());
    let parts: Vec<_> = told
        .enumerate()
        .map(|(at, told)| Part::of(&format!("hub-{at}"), told))
        .collect();
    let query = Query::default();
    let found: Vec<_> = parts.iter().filter_map(Part::found).collect();
    json!({
        "status": merge::status(&parts, 1),
        "agents": merge::agents(&parts, &query),
        "flows": merge::flows(&parts, &query),
        "flow": merge::flow(&parts),
        "connectors": merge::connectors(&parts),
        "events": merge::events(&parts, &query),
        "paths": path::paths(&parts, "hub-0", &query),
        "history": history::merge(&found),
        "hubs": parts.iter().map(Part::whole).collect::<Vec<_>>(),
    })
}
