//! Keys that keep their running value until the process is started again.

/// A key that cannot change while the process runs.
#[derive(Debug)]
pub struct Fixed<C> {
    /// Its path.
    pub key: &'static str,
    /// Whether two configurations agree about it.
    pub same: fn(&C, &C) -> bool,
    /// Gives the first the value of the second.
    pub keep: fn(&mut C, &C),
}

impl<C> Fixed<C> {
    /// Gives `new` the running values of all `fixed` keys; returns those that differ. As the running
    /// values stay, the next comparison names them again.
    pub fn keep_running(fixed: &[Self], running: &C, new: &mut C) -> Vec<&'static str> {
        let differ = fixed.iter().filter(|one| !(one.same)(running, new));
        let differ: Vec<_> = differ.collect();
        for one in &differ {
            (one.keep)(new, running);
        }
        differ.into_iter().map(|one| one.key).collect()
    }
}

/// The [`Fixed`] of a key that is one field: `fixed!("admin.bind", admin.bind)`.
#[macro_export]
macro_rules! fixed {
    ($key:literal, $($field:ident).+) => {
        $crate::Fixed {
            key: $key,
            same: |old, new| old.$($field).+ == new.$($field).+,
            keep: |config, old| config.$($field).+.clone_from(&old.$($field).+),
        }
    };
}
