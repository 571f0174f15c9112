//! What claims get, whatever the registry is.

use nowconnect_hub::registry::{Claim, ClaimError, Lease};
use nowconnect_testkit::anyhow::Result;
use nowconnect_testkit::redis::Redis;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::side::{Side, claim, holding};

async fn joins_and_new_claims(side: &Side) -> Result<()> {
    let first = side.claim(claim("a", 1)).await?;
    let epoch = first.epoch();
    let second = side.claim(holding(epoch, claim("a", 1))).await?;
    assert_eq!(second.epoch(), epoch, "joins");
    let silent = Claim {
        epoch_held: None,
        ..claim("a", 1)
    };
    assert_eq!(
        side.claim(silent).await?.epoch(),
        epoch,
        "an older agent joins"
    );
    let restarted = side.claim(claim("a", 2)).await?;
    assert!(restarted.epoch() > epoch, "a restart");
    let returned = side.claim(claim("a", 2)).await?;
    assert!(returned.epoch() > restarted.epoch(), "lost all its tunnels");
    let late = side.claim(holding(epoch, claim("a", 1))).await?;
    assert!(late.epoch() > returned.epoch(), "outlived, so new");
    assert_eq!(side.registry.owner("a"), Some(late.owner()));
    Ok(())
}

async fn epochs_are_above_what_was_seen(side: &Side) -> Result<()> {
    let first = side.claim(claim("seen", 1)).await?.epoch();
    let told = Claim {
        epoch_seen: first + 5_000,
        ..claim("seen", 2)
    };
    assert_eq!(side.claim(told).await?.epoch(), first + 5_001);
    let lied = Claim {
        epoch_seen: u64::MAX,
        epoch_held: Some(u64::MAX),
        ..claim("seen", 3)
    };
    let lied = side.claim(lied).await?.epoch();
    assert!(
        lied > first + 5_001 && lied < first + 2 * 86_400_000,
        "{lied}"
    );
    Ok(())
}

async fn what_was_lost_is_restored(side: &Side) -> Result<()> {
    let known = side.claim(claim("old", 1)).await?;
    let held = known.epoch() + 100;
    let restored = side.claim(holding(held, claim("old", 2))).await?;
    assert_eq!(restored.epoch(), held);
    let unknown = side.claim(holding(held, claim("unknown", 3))).await?;
    assert_eq!(unknown.epoch(), held);
    Ok(())
}

async fn rivals_are_damped(side: &Side) -> Result<()> {
    let mut held = vec![side.claim(claim("r", 1)).await?];
    for instance in 2..5 {
        held.push(side.claim(claim("r", instance)).await?);
    }
    let refused = side.claim(claim("r", 9)).await;
    assert_eq!(refused.err(), Some(ClaimError::Conflict));
    let incumbent = held.last().map(Lease::owner);
    assert_eq!(side.registry.owner("r"), incumbent);
    let own = holding(incumbent.map_or(0, |owner| owner.epoch), claim("r", 4));
    assert!(
        side.claim(own).await.is_ok(),
        "the incumbent may have more tunnels"
    );
    Ok(())
}

async fn all(side: &Side) -> Result<()> {
    joins_and_new_claims(side).await?;
    epochs_are_above_what_was_seen(side).await?;
    what_was_lost_is_restored(side).await?;
    rivals_are_damped(side).await
}

#[tokio::test]
async fn alone() -> Result<()> {
    all(&Side::alone("hub-a")).await
}

#[tokio::test]
async fn shared() -> Result<()> {
    let redis = Redis::start().await?;
    all(&Side::up("hub-a", &redis.url()).await?).await
}

/// The rules stand twice, in Rust and in Lua: any history of claims must go the same way in both, but
/// for the milliseconds between the two clocks.
#[tokio::test]
async fn both_judge_alike() -> Result<()> {
    let redis = Redis::start().await?;
    let (shared, alone) = (Side::up("hub-a", &redis.url()).await?, Side::alone("hub-a"));
    let step = (1u128..4, 0u8..4, any::<bool>());
    let history = proptest::collection::vec(step, 1..12);
    let mut runner = TestRunner::deterministic();
    for round in 0..40 {
        let steps = history.new_tree(&mut runner).expect("a history").current();
        let id = format!("agent-{round}");
        let mut leases: Vec<(Lease, Lease)> = Vec::new();
        for (instance, holds, leaves) in steps.clone() {
            // The epochs differ, so what the agent holds is named by whose it is.
            let of = |lease: Option<&Lease>| match holds {
                0 => None,
                1 => Some(0),
                2 => Some(lease.map_or(7, Lease::epoch)),
                _ => Some(lease.map_or(0, Lease::epoch) + 1_000_000),
            };
            let own = leases.iter().rev();
            let mut own = own.filter(|(lease, _)| lease.owner().instance.0 == instance);
            let own = own.next();
            let ask = |lease| Claim {
                epoch_held: of(lease),
                ..claim(&id, instance)
            };
            let here = alone.claim(ask(own.map(|(lease, _)| lease))).await;
            let there = shared.claim(ask(own.map(|(_, lease)| lease))).await;
            match (here, there) {
                (Ok(here), Ok(there)) => {
                    let joined = |new: &Lease, held: fn(&(Lease, Lease)) -> &Lease| {
                        let epochs = leases.iter().map(held).map(Lease::epoch);
                        epochs
                            .map(|epoch| epoch.cmp(&new.epoch()))
                            .collect::<Vec<_>>()
                    };
                    assert_eq!(
                        joined(&here, |(lease, _)| lease),
                        joined(&there, |(_, lease)| lease),
                        "{steps:?}"
                    );
                    leases.push((here, there));
                }
                (here, there) => assert_eq!(here.err(), there.err(), "{steps:?}"),
            }
            if leaves && !leases.is_empty() {
                leases.remove(0);
            }
        }
    }
    Ok(())
}

/// Alone there is nobody to ask, so a proof needs the nonce of its hub; two hubs that share a registry
/// accept each proof once between them, whoever is first.
#[tokio::test]
async fn a_proof_is_new_once_for_all_who_share() -> Result<()> {
    let alone = Side::alone("hub-a");
    assert_eq!(alone.registry.is_first_use("one").await, None);

    let redis = Redis::start().await?;
    redis.seem_old().await?;
    let (a, b) = (
        Side::up("hub-a", &redis.url()).await?,
        Side::up("hub-b", &redis.url()).await?,
    );
    for round in 0..20 {
        let proof = format!("proof-{round}");
        let (first, second) = tokio::join!(
            a.registry.is_first_use(&proof),
            b.registry.is_first_use(&proof)
        );
        assert_eq!(
            first
                .map(u8::from)
                .zip(second.map(u8::from))
                .map(|(a, b)| a + b),
            Some(1)
        );
        assert_eq!(a.registry.is_first_use(&proof).await, Some(false));
    }
    Ok(())
}

#[tokio::test]
async fn the_rights_that_are_documented_suffice() -> Result<()> {
    let redis = Redis::plan().user("hub", "pw").start().await?;
    redis.seem_old().await?;
    let side = Side::up("hub-a", &redis.url()).await?;
    let other = Side::up("hub-b", &redis.url()).await?;
    let _old = side.claim(claim("a", 1)).await?;
    let new = other.claim(claim("a", 2)).await?;
    side.wait_superseded("a", new.owner()).await?;
    assert_eq!(side.registry.is_first_use("one").await, Some(true));
    assert_eq!(other.registry.is_first_use("one").await, Some(false));
    Ok(())
}

/// Data that were lost without a connection being lost, or before a hub started: nobody can tell what
/// was shown before.
#[tokio::test]
async fn a_registry_that_lost_its_data_is_not_asked_about_proofs() -> Result<()> {
    let redis = Redis::start().await?;
    redis.seem_old().await?;
    let side = Side::up("hub-a", &redis.url()).await?;
    assert_eq!(side.registry.is_first_use("one").await, Some(true));
    redis.run(&["FLUSHALL"]).await?;
    assert_eq!(side.registry.is_first_use("one").await, None);
    assert_eq!(
        side.registry.is_first_use("one").await,
        Some(false),
        "this much is known"
    );
    let late = Side::up("hub-b", &redis.url()).await?;
    assert_eq!(late.registry.is_first_use("two").await, None);
    redis.seem_old().await?;
    assert_eq!(late.registry.is_first_use("three").await, Some(true));
    // What is too old to be shown again goes.
    for share in 0..16 {
        let key = format!("nowconnect:{{proofs:{share}}}");
        redis.run(&["ZADD", &key, "1", "old"]).await?;
        for proof in 0..100 {
            late.registry
                .is_first_use(&format!("{share}-{proof}"))
                .await;
        }
    }
    for share in 0..16 {
        let key = format!("nowconnect:{{proofs:{share}}}");
        assert_eq!(redis.run(&["ZSCORE", &key, "old"]).await?, "");
    }
    Ok(())
}

/// Servers that were away may have forgotten: their word counts again when every proof of before is
/// over.
#[tokio::test]
async fn a_registry_that_was_lost_is_not_asked_about_proofs() -> Result<()> {
    let mut redis = Redis::start().await?;
    redis.seem_old().await?;
    let side = Side::up("hub-a", &redis.url()).await?;
    assert_eq!(side.registry.is_first_use("one").await, Some(true));
    redis.kill().await?;
    side.wait_down().await?;
    assert_eq!(side.registry.is_first_use("one").await, None);
    redis.restart().await?;
    side.wait_up().await?;
    assert_eq!(
        side.registry.is_first_use("one").await,
        None,
        "it has forgotten"
    );
    Ok(())
}
