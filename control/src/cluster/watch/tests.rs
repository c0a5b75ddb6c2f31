use std::io::Write;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::state::Labels;

fn namespace(name: &str, version: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{v: '{version}'}}}}\n"
    )
}

/// A directory, and a source that reads it.
struct Fixture {
    root: TempDir,
    feed: Feed,
}

impl Fixture {
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().expect("a directory for the test");
        prepare(root.path());
        let feed = Box::new(FilesSource::new(ClusterId::Local, root.path())).start();
        Self { root, feed }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file in the test's directory");
    }

    fn next(&mut self) -> SourceEvent {
        self.feed.events.blocking_recv().expect("the source runs")
    }

    /// The next state, which must be an update.
    fn updated(&mut self) -> View {
        match self.next() {
            SourceEvent::Updated(view) => view,
            other => panic!("{other:?}"),
        }
    }

    fn synced(&mut self) -> View {
        assert_eq!(self.next(), SourceEvent::Connected);
        match self.next() {
            SourceEvent::Synced(view) => view,
            other => panic!("{other:?}"),
        }
    }

    fn lost(&mut self) -> String {
        match self.next() {
            SourceEvent::Lost(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

fn in_force(view: &View) -> Vec<String> {
    let version = |labels: &Labels| labels.get("v").cloned().unwrap_or_default();
    let namespaces = view.objects.namespaces.iter();
    namespaces.map(|(name, labels)| format!("{name} {}", version(labels))).collect()
}

#[test]
fn files_come_change_and_go() {
    let mut fixture = Fixture::new(|path| {
        fs::write(path.join("a.yaml"), namespace("x", "1")).unwrap();
        fs::write(path.join(".hidden.yaml"), namespace("hidden", "1")).unwrap();
        fs::write(path.join("readme.md"), "# x").unwrap();
        fs::create_dir(path.join("sub")).unwrap();
        fs::write(path.join("sub/b.yml"), namespace("y", "1")).unwrap();
    });
    assert_eq!(in_force(&fixture.synced()), ["x 1", "y 1"]);
    fixture.write("a.yaml", &namespace("x", "2"));
    assert_eq!(in_force(&fixture.updated()), ["x 2", "y 1"]);
    // As editors and tools do it: a new file takes the name.
    fixture.write(".a.yaml.swp", &namespace("x", "3"));
    fs::rename(fixture.path(".a.yaml.swp"), fixture.path("a.yaml")).unwrap();
    assert_eq!(in_force(&fixture.updated()), ["x 3", "y 1"]);
    fixture.write("sub/c.json", &namespace("z", "1"));
    assert_eq!(in_force(&fixture.updated()), ["x 3", "y 1", "z 1"]);
    fs::remove_file(fixture.path("sub/b.yml")).unwrap();
    assert_eq!(in_force(&fixture.updated()), ["x 3", "z 1"]);
    fs::create_dir(fixture.path("new")).unwrap();
    fixture.write("new/d.yaml", &namespace("w", "1"));
    assert_eq!(in_force(&fixture.updated()), ["w 1", "x 3", "z 1"]);
}

#[test]
fn half_a_file_is_waited_for() {
    let both = namespace("x", "1") + &namespace("y", "1");
    let mut fixture = Fixture::new(|path| fs::write(path.join("a.yaml"), &both).unwrap());
    assert_eq!(in_force(&fixture.synced()), ["x 1", "y 1"]);
    let mut file = fs::File::create(fixture.path("a.yaml")).unwrap();
    for part in [namespace("x", "2"), namespace("y", "2")] {
        file.write_all(part.as_bytes()).unwrap();
        file.flush().unwrap();
        // Longer than it has to be quiet, shorter than writers are waited for.
        std::thread::sleep(5 * QUIET);
    }
    drop(file);
    assert_eq!(in_force(&fixture.updated()), ["x 2", "y 2"], "never x alone");
}

#[test]
fn a_config_map_changes_as_a_whole() {
    let write = |root: &Path, dir: &str, version: &str| {
        fs::create_dir(root.join(dir)).unwrap();
        fs::write(root.join(dir).join("a.yaml"), namespace("x", version)).unwrap();
        fs::write(root.join(dir).join("b.yaml"), namespace("y", version)).unwrap();
        symlink(dir, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    let mut fixture = Fixture::new(|path| {
        write(path, "..2026_1", "1");
        symlink("..data/a.yaml", path.join("a.yaml")).unwrap();
        symlink("..data/b.yaml", path.join("b.yaml")).unwrap();
        symlink("..data/gone.yaml", path.join("gone.yaml")).unwrap();
    });
    let view = fixture.synced();
    assert_eq!((in_force(&view), view.conditions.len()), (vec!["x 1".into(), "y 1".into()], 0));
    write(fixture.root.path(), "..2026_2", "2");
    fs::remove_dir_all(fixture.path("..2026_1")).unwrap();
    assert_eq!(in_force(&fixture.updated()), ["x 2", "y 2"]);
}

#[test]
fn a_directory_that_vanishes_is_lost_and_may_come_back() {
    let mut fixture = Fixture::new(|path| {
        fs::write(path.join("a.yaml"), namespace("x", "1")).unwrap();
    });
    fixture.synced();
    let root = fixture.root.path().to_owned();
    fs::remove_dir_all(&root).unwrap();
    // The file may be seen to go first.
    let mut event = fixture.next();
    if let SourceEvent::Updated(view) = &event {
        assert_eq!(in_force(view), [""; 0]);
        event = fixture.next();
    }
    let SourceEvent::Lost(reason) = event else { panic!("{event:?}") };
    assert!(reason.starts_with(&format!("directory {}: ", root.display())), "{reason}");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("b.yaml"), namespace("y", "2")).unwrap();
    let view = fixture.synced();
    if in_force(&view).is_empty() {
        assert_eq!(in_force(&fixture.updated()), ["y 2"]);
    } else {
        assert_eq!(in_force(&view), ["y 2"]);
    }
    // It is watched again, not just polled.
    fixture.write("b.yaml", &namespace("y", "3"));
    assert_eq!(in_force(&fixture.updated()), ["y 3"]);
}

#[test]
fn a_renamed_subdirectory_is_followed() {
    let mut fixture = Fixture::new(|path| {
        fs::create_dir(path.join("v1")).unwrap();
        fs::write(path.join("v1/a.yaml"), namespace("x", "1")).unwrap();
    });
    fixture.synced();
    // Moving a subdirectory in one step is one change.
    fs::rename(fixture.path("v1"), fixture.path("v2")).unwrap();
    fixture.write("v2/a.yaml", &namespace("x", "2"));
    let mut view = fixture.updated();
    while in_force(&view) != ["x 2"] {
        view = fixture.updated();
    }
}

#[test]
fn odd_entries_do_no_harm() {
    let mut fixture = Fixture::new(|path| {
        fs::write(path.join("a.yaml"), namespace("x", "1")).unwrap();
        fs::create_dir(path.join("loop")).unwrap();
        symlink("..", path.join("loop/up")).unwrap();
        symlink(".", path.join("self")).unwrap();
        symlink("nowhere", path.join("dangling.yaml")).unwrap();
        fs::create_dir(path.join("directory.yaml")).unwrap();
        let pipe = path.join("pipe.yaml");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        fs::write(path.join("bytes.yaml"), [0xff, 0, 1]).unwrap();
        let large = fs::File::create(path.join("large.yaml")).unwrap();
        large.set_len(MAX_FILE_BYTES as u64 + 1).unwrap();
    });
    let view = fixture.synced();
    assert_eq!(in_force(&view), ["x 1"]);
    let told: Vec<_> = view.conditions.iter().map(|c| c.message.as_str()).collect();
    assert_eq!(
        told,
        [
            "bytes.yaml: is no text from byte 0 on; write it as UTF-8; nothing of it is in force",
            "large.yaml: has 67108865 bytes, the limit is 67108864; split the file; nothing of it is \
         in force",
            "pipe.yaml: is no regular file; move it elsewhere; nothing of it is in force",
        ]
    );
}

#[test]
fn a_directory_that_was_never_there() {
    let mut fixture = Fixture::new(|path| fs::remove_dir(path).unwrap());
    let reason = fixture.lost();
    assert!(reason.ends_with("create it, or correct its name or permissions"), "{reason}");
    fs::create_dir(fixture.root.path()).unwrap();
    fixture.synced();
}

#[test]
fn reading_once() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), namespace("x", "1")).unwrap();
    let source = FilesSource::new(ClusterId::Local, root.path());
    assert_eq!(in_force(&source.read().unwrap()), ["x 1"]);
    FilesSource::new(ClusterId::Local, root.path().join("none")).read().unwrap_err();
}

#[test]
fn files_that_stay_are_not_read_again() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(&file, namespace("x", "1")).unwrap();
    let mut scanner = Scanner::default();
    let fresh = scanner.scan(root.path()).unwrap();
    assert!(matches!(fresh["a.yaml"], Content::Bytes(_)));
    // Just written: another write could leave the same stamp.
    let again = scanner.scan(root.path()).unwrap();
    assert!(matches!(again["a.yaml"], Content::Bytes(_)));
    while !Stamp::new(&fs::metadata(&file).unwrap()).settled(SystemTime::now()) {
        std::thread::sleep(Duration::from_millis(100));
    }
    scanner.scan(root.path()).unwrap();
    assert_eq!(scanner.scan(root.path()).unwrap()["a.yaml"], Content::Unchanged);
    fs::write(&file, namespace("x", "2")).unwrap();
    assert!(matches!(scanner.scan(root.path()).unwrap()["a.yaml"], Content::Bytes(_)));
}

#[test]
fn what_a_change_is_waited_for() {
    let path = || vec![PathBuf::from("/d/a.yaml")];
    let waited = |wakes: Vec<Wake>| {
        let (sender, receiver) = channel();
        for wake in wakes {
            sender.send(wake).unwrap();
        }
        wait(&receiver)
    };
    assert!(waited(vec![Wake::Changed(path(), Writing::Ended)]));
    assert!(waited(vec![Wake::Changed(path(), Writing::Goes)]), "the writer never closes");
    assert!(!waited(vec![Wake::Changed(path(), Writing::Goes), Wake::Stop]));
    let (sender, receiver) = channel();
    drop(Stop(sender));
    assert!(!wait(&receiver), "a dropped feed ends the thread");
}

#[test]
fn what_wakes() {
    let event = |kind, path: &str| {
        let event = notify::Event::new(kind).add_path(path.into());
        wake(Ok(event)).map(|wake| match wake {
            Wake::Changed(_, writing) => writing == Writing::Goes,
            Wake::Stop => panic!("no stop"),
        })
    };
    let written = EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any));
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
    let renamed = EventKind::Modify(ModifyKind::Name(notify::event::RenameMode::To));
    assert_eq!(event(written, "/d/a.yaml"), Some(true));
    assert_eq!(event(closed, "/d/a.yaml"), Some(false));
    assert_eq!(event(opened, "/d/a.yaml"), None, "our own reading");
    assert_eq!(event(written, "/d/.a.yaml.swp"), None, "an editor's");
    assert_eq!(event(written, "/d/notes.txt"), None);
    assert_eq!(event(renamed, "/d/..data"), Some(false));
    assert!(wake(Err(notify::Error::generic("too many"))).is_some());
}
