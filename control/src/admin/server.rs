//! The Unix socket's server side.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::debug;

use super::{Desk, Request, Response};

/// Longest request, in bytes: thousands of connections to explain fit.
const LONGEST_REQUEST: u64 = 64 << 20;

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, to know our own file again.
    file: (u64, u64),
}

impl Server {
    /// Listens at `path`, which only its owner may use at any time. A socket
    /// that a dead daemon has left is replaced; one that answers is not, and
    /// neither is a file of another kind.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(Path::new(""));
        if !folder.as_os_str().is_empty() {
            fs::create_dir_all(folder)?;
        }
        replaceable(path)?;
        // Between bind and chmod a socket may be open to others, so it takes
        // its name only when that is done.
        let private = folder.join(format!(".{}.new", std::process::id()));
        match fs::remove_dir_all(&private) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => DirBuilder::new().mode(0o700).create(&private)?,
        }
        let bound = bind_within(&private, path);
        let removed = fs::remove_dir_all(&private);
        let (listener, file) = bound?;
        let server = Self { listener, path: path.to_owned(), file };
        removed.map(|()| server)
    }

    /// Serves until dropped.
    pub async fn serve(self, desk: Desk) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let desk = desk.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, &desk).await {
                            debug!(%error, "an admin connection ended early");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others may close some.
                    debug!(%error, "no admin connection accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already, or another daemon's; nothing depends on it.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether there is nothing at the path that someone may need.
fn replaceable(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let (kind, message) = if !found.file_type().is_socket() {
        let message =
            "is there and is not a socket; remove it, or set admin.socket to another path";
        (io::ErrorKind::AlreadyExists, message)
    } else if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let message = "is the socket of another tieline daemon, which answers; end that one first, \
                       or set admin.socket to another path";
        (io::ErrorKind::AddrInUse, message)
    } else {
        return Ok(());
    };
    Err(io::Error::new(kind, format!("{} {message}", path.display())))
}

/// Binds a socket in a folder that nobody else can enter, and moves it to its
/// path when only its owner may use it.
fn bind_within(private: &Path, path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let unready = private.join("s");
    let listener = UnixListener::bind(&unready)?;
    fs::set_permissions(&unready, Permissions::from_mode(0o600))?;
    let file = identity(&fs::symlink_metadata(&unready)?);
    fs::rename(&unready, path)?;
    Ok((listener, file))
}

fn identity(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

async fn converse(stream: UnixStream, desk: &Desk) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut lines).take(LONGEST_REQUEST).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let response = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => desk.ask(request).await,
            Err(error) => Response::Error(format!("not a request: {error}")),
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        if !whole {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
