//! Links come, go and come back.

use crate::member::{both_linked, pair};

#[tokio::test]
async fn two_hubs_have_a_link_in_each_direction() {
    let (a, b) = pair(|_, _| ()).await;
    let (to_b, to_a) = both_linked(&a, &b).await;
    assert_eq!((&*to_b.peer().name, &*to_a.peer().name), ("hub-b", "hub-a"));
    a.is_ready().await;
    let scrape = a.scrape().await;
    let up = [("peer", "127.0.0.11"), ("state", "established")];
    assert_eq!(scrape.get("nowconnect_mesh_links", &up), Some(1.0));
}
