use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;

/// Far beyond what any of this takes; only a failure waits that long.
const DEADLINE: Duration = Duration::from_secs(60);

/// A watch, and what it has reported.
struct Fixture {
    _watch: Watch,
    reports: Receiver<Vec<PathBuf>>,
}

impl Fixture {
    fn new<const N: usize>(paths: [&Path; N]) -> Self {
        let (send, reports) = channel();
        let changed = move |paths: &[PathBuf]| {
            let _ = send.send(paths.to_vec());
        };
        Self { _watch: Watch::start(paths, changed).unwrap(), reports }
    }

    #[track_caller]
    fn reports(&self, path: &Path) {
        assert_eq!(self.reports.recv_timeout(DEADLINE).unwrap(), [path.to_owned()]);
    }

    /// That nothing was reported is only known once something later was: `path`
    /// is changed now, and must be the first report.
    #[track_caller]
    fn has_reported_nothing_before(&self, path: &Path) {
        fs::write(path, format!("{:?}", Instant::now())).unwrap();
        self.reports(path);
    }
}

/// Two files in a directory of their own, the second for
/// [`Fixture::has_reported_nothing_before`].
fn files() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let (file, other) = (directory.path().join("file"), directory.path().join("other"));
    fs::write(&file, "1").unwrap();
    fs::write(&other, "1").unwrap();
    (directory, file, other)
}

/// Gives a file its content at one stroke. One that is created and then written
/// is two changes to a watch that looks in between.
fn put(file: &Path, content: &str) {
    let directory = file.parent().unwrap();
    let new = tempfile::NamedTempFile::with_prefix_in(".", directory).unwrap();
    fs::write(&new, content).unwrap();
    new.persist(file).unwrap();
}

/// Takes a directory away at one stroke, with all that is in it.
fn vanish(directory: &Path) {
    let bin = tempfile::tempdir().unwrap();
    fs::rename(directory, bin.path().join("gone")).unwrap();
}

/// Writes a ConfigMap's volume as the kubelet does: the files are in a new
/// directory, `..data` is swapped by a rename, the old directory is removed.
fn project(volume: &Path, version: u32, files: &[(&str, &str)]) {
    let real = format!("..version_{version}");
    fs::create_dir_all(volume.join(&real)).unwrap();
    for (name, content) in files {
        fs::write(volume.join(&real).join(name), content).unwrap();
    }
    let old = fs::read_link(volume.join("..data")).ok();
    symlink(&real, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (name, _) in files {
        let visible = volume.join(name);
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new("..data").join(name), visible).unwrap();
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old)).unwrap();
    }
}

#[test]
fn a_file_written_in_place_is_reported_and_its_neighbors_are_not() {
    let (directory, file, other) = files();
    let watch = Fixture::new([&file, &other]);
    fs::write(directory.path().join("neighbor"), "1").unwrap();
    let mut writer = fs::File::options().write(true).open(&file).unwrap();
    writer.write_all(b"2").unwrap();
    watch.reports(&file);
    watch.has_reported_nothing_before(&other);
}

#[test]
fn equal_content_is_no_change_however_it_is_written() {
    let (_directory, file, other) = files();
    let watch = Fixture::new([&file, &other]);
    put(&file, "1");
    fs::File::open(&file).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    watch.has_reported_nothing_before(&other);
}

#[test]
fn a_file_renamed_over_is_reported_every_time() {
    let (_directory, file, _) = files();
    let watch = Fixture::new([&file]);
    for content in ["2", "3", "4"] {
        put(&file, content);
        watch.reports(&file);
    }
}

#[test]
fn a_file_written_in_parts_is_reported_with_its_last_part() {
    let (_directory, file, other) = files();
    let watch = Fixture::new([&file, &other]);
    let mut writer = fs::File::create(&file).unwrap();
    for part in 0..5 {
        writeln!(writer, "part {part}").unwrap();
        std::thread::sleep(QUIET / 3);
    }
    drop(writer);
    // How many reports there are depends on the clock; the last one comes after
    // the last part.
    watch.reports(&file);
    fs::write(&other, "2").unwrap();
    loop {
        let report = watch.reports.recv_timeout(DEADLINE).unwrap();
        if report.contains(&other) {
            break;
        }
        assert_eq!(report, std::slice::from_ref(&file));
    }
}

#[test]
fn a_config_map_is_followed_from_swap_to_swap_as_file_and_as_directory() {
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("volume");
    project(&volume, 0, &[("config.toml", "0"), ("extra", "0")]);
    let other = directory.path().join("other");
    let file = volume.join("config.toml");
    let as_file = Fixture::new([&file, &other]);
    let as_directory = Fixture::new([&volume, &other]);
    for version in 1..4 {
        project(&volume, version, &[("config.toml", &version.to_string()), ("extra", "0")]);
        as_file.reports(&file);
        as_directory.reports(&volume);
    }
    // Another file of the map changes: the directory does, the file does not.
    project(&volume, 4, &[("config.toml", "3"), ("extra", "1")]);
    as_directory.reports(&volume);
    // Nothing changes but the version.
    project(&volume, 5, &[("config.toml", "3"), ("extra", "1")]);
    as_file.has_reported_nothing_before(&other);
    as_directory.reports(&other);
}

#[test]
fn files_come_to_a_directory_change_and_leave_it() {
    let directory = tempfile::tempdir().unwrap();
    let watched = directory.path().join("watched");
    fs::create_dir(&watched).unwrap();
    let watch = Fixture::new([&watched]);
    let file = watched.join("file.yaml");
    put(&file, "1");
    watch.reports(&watched);
    put(&file, "2");
    watch.reports(&watched);
    fs::rename(&file, watched.join("renamed.yaml")).unwrap();
    watch.reports(&watched);
    fs::remove_file(watched.join("renamed.yaml")).unwrap();
    watch.reports(&watched);
}

#[test]
fn hidden_files_pipes_and_inner_directories_are_not_content() {
    let directory = tempfile::tempdir().unwrap();
    let watched = directory.path().join("watched");
    fs::create_dir(&watched).unwrap();
    let other = directory.path().join("other");
    let watch = Fixture::new([&watched, &other]);
    fs::write(watched.join(".file.swp"), "1").unwrap();
    fs::create_dir(watched.join("inner")).unwrap();
    fs::write(watched.join("inner/file"), "1").unwrap();
    symlink("/dev/zero", watched.join("endless")).unwrap();
    symlink("nowhere", watched.join("dangling")).unwrap();
    watch.has_reported_nothing_before(&other);
}

#[test]
fn a_directory_may_vanish_and_come_back_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let outer = directory.path().join("outer");
    let watched = outer.join("watched");
    fs::create_dir_all(&watched).unwrap();
    fs::write(watched.join("file"), "1").unwrap();
    let watch = Fixture::new([&watched]);
    for round in 0..3 {
        vanish(&watched);
        watch.reports(&watched);
        fs::create_dir(&watched).unwrap();
        watch.reports(&watched);
        put(&watched.join("file"), &format!("{round}"));
        watch.reports(&watched);
        // With its parent, so that there is nothing left to hear of it from.
        vanish(&outer);
        watch.reports(&watched);
        fs::create_dir_all(&watched).unwrap();
        watch.reports(&watched);
        put(&watched.join("file"), "1");
        watch.reports(&watched);
    }
}

#[test]
fn a_directory_replaced_by_another_is_watched_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let watched = directory.path().join("watched");
    fs::create_dir(&watched).unwrap();
    let watch = Fixture::new([&watched]);
    for round in 0..3 {
        let next = directory.path().join(format!("next-{round}"));
        fs::create_dir(&next).unwrap();
        fs::write(next.join("file"), format!("{round}")).unwrap();
        fs::rename(&watched, directory.path().join(format!("old-{round}"))).unwrap();
        fs::rename(&next, &watched).unwrap();
        watch.reports(&watched);
        put(&watched.join("file"), &format!("{round} changed"));
        watch.reports(&watched);
    }
}

#[test]
fn symlinks_are_followed_to_where_they_lead_now() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for name in ["a", "b", "links"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("file"), name).unwrap();
    }
    let current = at("links").join("current");
    symlink(at("a"), &current).unwrap();
    let watch = Fixture::new([&current]);
    put(&at("a").join("file"), "changed");
    watch.reports(&current);
    symlink(at("b"), at("links").join("new")).unwrap();
    fs::rename(at("links").join("new"), &current).unwrap();
    watch.reports(&current);
    put(&at("b").join("file"), "changed too");
    watch.reports(&current);
}

#[test]
fn a_path_without_a_parent_is_found_when_it_appears() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("not/yet/file");
    let watch = Fixture::new([&file]);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "1").unwrap();
    watch.reports(&file);
}

#[test]
fn without_inotify_changes_are_found_by_looking() {
    let (_directory, file, _) = files();
    let mut blind = Places::new(None);
    let paths = [file.clone()];
    assert!(blind.arm(&paths), "nothing is watched, so anything may have changed");
    assert!(blind.arm(&paths), "and it stays so");
    let mut sighted = Places::new(watcher(channel().0));
    assert!(sighted.arm(&paths));
    assert!(!sighted.arm(&paths), "once watched, changes are heard of");
}

#[test]
fn nothing_is_reported_after_the_watch_has_ended() {
    let (_directory, file, _) = files();
    let watch = Fixture::new([&file]);
    let Fixture { _watch, reports } = watch;
    drop(_watch);
    fs::write(&file, "2").unwrap();
    assert!(reports.recv().is_err(), "the callback is gone, and its sender with it");
}

#[test]
fn a_watch_may_be_ended_by_its_own_report() {
    let (_directory, file, _) = files();
    let holder = std::sync::Arc::new(std::sync::Mutex::new(None::<Watch>));
    let (send, ended) = channel();
    let inner = holder.clone();
    let watch = Watch::start([&file], move |_| {
        drop(inner.lock().unwrap().take());
        let _ = send.send(());
    });
    *holder.lock().unwrap() = Some(watch.unwrap());
    fs::write(&file, "2").unwrap();
    ended.recv_timeout(DEADLINE).unwrap();
}
