//! The watcher against the ways in which files are really replaced.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nowconnect_settings::Watcher;
use tokio::time::timeout;

const FAST: Duration = Duration::from_millis(10);

/// The next change, which must come.
async fn next(watcher: &mut Watcher) -> Vec<PathBuf> {
    timeout(Duration::from_secs(20), watcher.changed())
        .await
        .unwrap()
}

/// Replaces a file as editors and certbot do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn only_other_content_is_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| dir.path().join(name));
    fs::write(&files[0], "1").unwrap();
    let mut watcher = Watcher::new(files.clone(), FAST);
    // Touched, replaced by the same, gone and back the same: nothing. The file that was not there
    // appears: a change, and the first one.
    fs::write(&files[0], "1").unwrap();
    replace(&files[0], "1");
    fs::remove_file(&files[0]).unwrap();
    fs::write(&files[0], "1").unwrap();
    fs::write(&files[1], "1").unwrap();
    assert_eq!(next(&mut watcher).await, [files[1].clone()]);
    replace(&files[0], "2");
    assert_eq!(next(&mut watcher).await, [files[0].clone()]);
    fs::remove_file(&files[0]).unwrap();
    replace(&files[1], "2");
    assert_eq!(
        next(&mut watcher).await,
        [files[1].clone()],
        "a file that is gone has not changed"
    );
    fs::write(&files[0], "3").unwrap();
    assert_eq!(next(&mut watcher).await, [files[0].clone()]);
}

#[tokio::test]
async fn what_everybody_can_do_with_a_file_counts_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    fs::write(&file, "1").unwrap();
    let chmod = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o600);
    let mut watcher = Watcher::with_exposure([file.clone()], FAST);
    let mut content = Watcher::new([file.clone()], FAST);
    for mode in [0o604, 0o606, 0o604, 0o640] {
        chmod(mode);
        let changed = next(&mut watcher).await;
        assert_eq!(changed, std::slice::from_ref(&file), "{mode:o}");
    }
    // The group may do what it does.
    chmod(0o660);
    replace(&file, "2");
    chmod(0o640);
    let changed = next(&mut content).await;
    assert_eq!(changed, [file], "its content alone");
}

/// A mounted ConfigMap or Secret: `file -> ..data/file`, `..data -> ..1/`.
#[tokio::test]
async fn a_swap_of_the_data_directory_is_seen_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let swap = |version: u32| {
        let data = format!("..{version}");
        fs::create_dir(at(&data)).unwrap();
        fs::write(at(&data).join("tls.crt"), format!("cert {version}")).unwrap();
        fs::write(at(&data).join("ca.crt"), "ca").unwrap();
        symlink(&data, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    };
    swap(1);
    symlink("..data/tls.crt", at("tls.crt")).unwrap();
    symlink("..data/ca.crt", at("ca.crt")).unwrap();
    let mut watcher = Watcher::new([at("tls.crt"), at("ca.crt")], FAST);
    for version in 2..5 {
        swap(version);
        fs::remove_dir_all(at(&format!("..{}", version - 1))).unwrap();
        assert_eq!(next(&mut watcher).await, [at("tls.crt")]);
    }
}

#[tokio::test]
async fn other_files_can_be_watched_later() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    for file in [&a, &b, &c] {
        fs::write(file, "1").unwrap();
    }
    let mut watcher = Watcher::new([a.clone(), b.clone()], FAST);
    for file in [&a, &b, &c] {
        fs::write(file, "2").unwrap();
    }
    // `b` stays and its change is not lost, `c` is new and is watched as it is, `a` is let go.
    watcher.watch([b.clone(), c.clone(), c.clone()]);
    assert_eq!(next(&mut watcher).await, [b]);
    fs::write(&c, "3").unwrap();
    assert_eq!(next(&mut watcher).await, [c]);
}
