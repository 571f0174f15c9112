//! The list of all cases, and the page that is made of it.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Result, ensure};
use nowconnect_testkit::{anyhow, program};

/// One hostile deed.
pub(crate) struct Case {
    /// The name of its test.
    pub(crate) name: &'static str,
    /// What the peer gets.
    pub(crate) refused: &'static str,
    /// What the operator sees.
    pub(crate) seen: &'static str,
}

/// The cases of one module.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) cases: &'static [Case],
}

/// Declares the cases of a module: `name: "what the peer gets", "what the operator sees" => test;`
macro_rules! cases {
    ($title:literal; $($name:ident: $refused:literal, $seen:literal => $test:expr;)+) => {
        pub(crate) const GROUP: crate::list::Group = crate::list::Group {
            title: $title,
            cases: &[$(crate::list::Case {
                name: stringify!($name),
                refused: $refused,
                seen: $seen,
            }),+],
        };
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> nowconnect_testkit::anyhow::Result<()> {
                $test.await
            }
        )+
    };
}
pub(crate) use cases;

const GROUPS: [&Group; 12] = [
    &crate::jwt::GROUP,
    &crate::upgrade::GROUP,
    &crate::ingress::GROUP,
    &crate::doors::GROUP,
    &crate::clients::GROUP,
    &crate::frames::GROUP,
    &crate::v1::GROUP,
    &crate::mesh::GROUP,
    &crate::agent_side::GROUP,
    &crate::registry::GROUP,
    &crate::jwks::GROUP,
    &crate::files::GROUP,
];

const INTRODUCTION: &str = "\
# Security cases

Hostile peers that the tests play against the real binary, one row per test of
`crates/cli/tests/e2e_hostile` (`cargo nextest run -p nowconnect --test e2e_hostile NAME`). Each case checks
what the peer gets, what the operator sees of it (a metric, by name and labels, or a log event), and that an honest client
is served afterwards.

This page is made from the tests: `NC_WRITE_CASES=1 cargo nextest run -p nowconnect --test e2e_hostile the_page`
writes it anew.
";

fn page() -> Result<String> {
    let mut page = INTRODUCTION.to_owned();
    let total: usize = GROUPS.iter().map(|group| group.cases.len()).sum();
    writeln!(page, "\n{total} cases in {} groups.", GROUPS.len())?;
    for Group { title, cases } in GROUPS {
        writeln!(
            page,
            "\n## {title}\n\n| case | the peer gets | the operator sees |"
        )?;
        writeln!(page, "|---|---|---|")?;
        for case in *cases {
            let name = case.name.replace('_', " ");
            writeln!(page, "| {name} | {} | {} |", case.refused, case.seen)?;
        }
    }
    Ok(page)
}

#[test]
fn the_page_lists_every_case() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security-cases.md");
    if std::env::var_os("NC_WRITE_CASES").is_some() {
        program::write(&file, &page()?)?;
    }
    ensure!(
        program::read(&file)? == page()?,
        "docs/security-cases.md is not what the tests are: write it anew with NC_WRITE_CASES=1"
    );
    Ok(())
}
