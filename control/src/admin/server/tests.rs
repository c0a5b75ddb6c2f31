use std::os::unix::net::UnixStream as Client;

use super::*;

/// What a folder holds.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/admin.sock");
    let server = Server::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(names(path.parent().unwrap()), ["admin.sock"]);
    Client::connect(&path).unwrap();
    drop(server);
    assert_eq!(names(path.parent().unwrap()), [""; 0]);
}

#[tokio::test]
async fn a_socket_is_open_to_nobody_before_it_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let private = folder.path().join("private");
    DirBuilder::new().mode(0o700).create(&private).unwrap();
    // Where it can't take its name, it stays as it was just before.
    let path = folder.path().join("taken");
    fs::create_dir(&path).unwrap();
    bind_within(&private, &path).unwrap_err();
    assert_eq!(fs::metadata(private.join("s")).unwrap().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn only_a_dead_daemons_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    fs::write(&path, "precious").unwrap();
    let error = Server::bind(&path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    let expected = format!(
        "{} is there and is not a socket; remove it, or set admin.socket to another path",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    // The standard library's listener leaves its file, as a killed daemon does.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    // So does one that was killed while it took its name.
    let left = folder.path().join(format!(".{}.new", std::process::id()));
    fs::create_dir(&left).unwrap();
    fs::write(left.join("s"), "").unwrap();
    let server = Server::bind(&path).unwrap();
    assert_eq!(names(folder.path()), ["admin.sock"]);
    Client::connect(&path).unwrap();

    let error = Server::bind(&path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("admin.sock is the socket of another"), "{error}");
    Client::connect(&path).unwrap();

    // What has come to the path since is not ours to remove.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    drop(server);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}
