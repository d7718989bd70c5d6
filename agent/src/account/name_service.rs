//! Answers lookups of users and groups on the socket of nscd, in the protocol of nscd (version 2).
//!
//! glibc and musl define the protocol in their `nscd-client.h` and `nscd.h`. A client sends one
//! request for each connection. Without an answer, it reads the files. An answer "not
//! found" is final for glibc, so the database has all entries of the files too. Requests for hosts,
//! services and shared memory are not answered, and the C library then works as without nscd.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{AccountDatabase, GroupEntry, UserEntry};

const VERSION: i32 = 2;
/// Bytes of a request before its key: version, type and length of the key.
const REQUEST_HEADER_BYTES: usize = 12;
/// Longest key, with its NUL, as in nscd. Longer requests are not answered.
const MAX_KEY_BYTES: usize = 1024;
/// Connections that are served at once. Further ones wait in the socket's queue.
const MAX_CONNECTIONS: usize = 64;
/// Time for one request. glibc waits for an answer for at most 5 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Delay after a failed accept, for example because descriptors are exhausted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

const USER_BY_NAME: i32 = 0;
const USER_BY_ID: i32 = 1;
const GROUP_BY_NAME: i32 = 2;
const GROUP_BY_ID: i32 = 3;
const GROUPS_OF_USER: i32 = 15;

/// Serves an [`AccountDatabase`] to all programs that can reach the socket.
#[derive(Debug, Clone)]
pub struct NameService {
    socket: PathBuf,
    database: Arc<AccountDatabase>,
}

impl NameService {
    pub fn new(socket: impl Into<PathBuf>, database: AccountDatabase) -> Self {
        Self { socket: socket.into(), database: Arc::new(database) }
    }

    /// Listens on the socket, and answers until it is dropped. Fails if it cannot listen.
    pub async fn run(&self) -> io::Result<()> {
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket)?;
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
            let Ok((stream, _)) = listener.accept().await else {
                sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            let database = self.database.clone();
            connections.spawn(async move {
                // A client that is not answered reads the files.
                let _unanswered = timeout(REQUEST_TIMEOUT, serve(stream, &database)).await;
                drop(permit);
            });
        }
    }
}

async fn serve(mut stream: UnixStream, database: &AccountDatabase) -> io::Result<()> {
    let mut header = [0; REQUEST_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let word = |at: usize| header[at..at + 4].try_into().map_or(0, i32::from_ne_bytes);
    let (version, request) = (word(0), word(4));
    let key_bytes = usize::try_from(word(8)).unwrap_or(usize::MAX);
    if version != VERSION || key_bytes > MAX_KEY_BYTES {
        return Ok(());
    }
    let mut key = vec![0; key_bytes];
    stream.read_exact(&mut key).await?;
    let key = String::from_utf8_lossy(&key);
    match answer(database, request, key.trim_end_matches('\0')) {
        Some(answer) => stream.write_all(&answer).await,
        None => Ok(()),
    }
}

/// Returns the answer to a request; `None` for requests that are not answered.
fn answer(database: &AccountDatabase, request: i32, key: &str) -> Option<Vec<u8>> {
    let id = || key.parse().ok();
    Some(match request {
        USER_BY_NAME => user(database.user_by_name(key)),
        USER_BY_ID => user(id().and_then(|id| database.user_by_id(id))),
        GROUP_BY_NAME => group(database.group_by_name(key)),
        GROUP_BY_ID => group(id().and_then(|id| database.group_by_id(id))),
        GROUPS_OF_USER => groups_of_user(database, key),
        _ => return None,
    })
}

/// Encodes `pw_response_header` of glibc, and the strings whose lengths it contains.
fn user(found: Option<&UserEntry>) -> Vec<u8> {
    let Some(user) = found else { return words(&[VERSION, 0, 0, 0, -1, -1, 0, 0, 0]) };
    let UserEntry { name, uid, gid, comment, home, shell } = user;
    let [name, password, comment, home, shell] = [name.as_str(), "x", comment, home, shell].map(terminated);
    let mut answer = words(&[
        VERSION,
        1,
        length(&name),
        length(&password),
        uid.cast_signed(),
        gid.cast_signed(),
        length(&comment),
        length(&home),
        length(&shell),
    ]);
    answer.extend([name, password, comment, home, shell].concat());
    answer
}

/// Encodes `gr_response_header` of glibc, the lengths of the members, and the strings.
fn group(found: Option<&GroupEntry>) -> Vec<u8> {
    let Some(group) = found else { return words(&[VERSION, 0, 0, 0, -1, 0]) };
    let (name, password) = (terminated(&group.name), terminated("x"));
    let members: Vec<_> = group.members.iter().map(|member| terminated(member)).collect();
    let count = i32::try_from(members.len()).unwrap_or_default();
    let mut answer = words(&[VERSION, 1, length(&name), length(&password), group.gid.cast_signed(), count]);
    answer.extend(words(&members.iter().map(|member| length(member)).collect::<Vec<_>>()));
    answer.extend([name, password].concat());
    answer.extend(members.concat());
    answer
}

/// Encodes `initgr_response_header` of glibc, and the gids.
fn groups_of_user(database: &AccountDatabase, user: &str) -> Vec<u8> {
    let gids = database.supplementary_groups(user);
    let is_known = database.user_by_name(user).is_some() || !gids.is_empty();
    let count = i32::try_from(gids.len()).unwrap_or_default();
    let mut answer = words(&[VERSION, is_known.into(), count]);
    answer.extend(words(&gids.into_iter().map(u32::cast_signed).collect::<Vec<_>>()));
    answer
}

fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn length(text: &[u8]) -> i32 {
    text.len().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::getuid;

    use super::*;
    use crate::account::{Account, AccountFiles};

    fn database() -> AccountDatabase {
        let directory = tempfile::tempdir().unwrap();
        let (passwd, group) = (directory.path().join("passwd"), directory.path().join("group"));
        fs::write(&passwd, "root:x:0:0:root:/root:/bin/bash\npodling:x:54321:54322::/workspace:/bin/sh\n")
            .unwrap();
        fs::write(&group, "root:x:0:\npodling:x:54322:\ndocker:x:998:ada,podling\n").unwrap();
        Account::of_process(&AccountFiles { passwd, group }).database
    }

    #[test]
    fn answers_have_the_layout_of_nscd() {
        let database = database();
        let found = answer(&database, USER_BY_ID, "54321").unwrap();
        assert_eq!(found[..36], words(&[2, 1, 8, 2, 54321, 54322, 1, 11, 8]));
        assert_eq!(&found[36..], b"podling\0x\0\0/workspace\0/bin/sh\0");
        let group = answer(&database, GROUP_BY_NAME, "docker").unwrap();
        assert_eq!(group[..32], words(&[2, 1, 7, 2, 998, 2, 4, 8]));
        assert_eq!(&group[32..], b"docker\0x\0ada\0podling\0");
        assert_eq!(answer(&database, GROUPS_OF_USER, "podling").unwrap(), words(&[2, 1, 1, 998]));
        for (request, bytes) in
            [(USER_BY_NAME, 36), (USER_BY_ID, 36), (GROUP_BY_ID, 24), (GROUPS_OF_USER, 12)]
        {
            let absent = answer(&database, request, "77").unwrap();
            assert_eq!((absent.len(), &absent[..8]), (bytes, words(&[2, 0]).as_slice()));
        }
        assert_eq!(answer(&database, 14, "example.org"), None, "hosts are not served");
    }

    /// Runs real programs with a uid that no file has, in a mount namespace whose socket of nscd is
    /// ours.
    #[tokio::test]
    async fn programs_find_the_user_without_files() {
        if !getuid().is_root() {
            eprintln!("skipped: only root can mount");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let service = NameService::new(directory.path().join("socket"), database());
        let mut serving = JoinSet::new();
        serving.spawn(async move { service.run().await });
        let script = format!(
            "mount -t tmpfs none /run && mkdir /run/nscd && mount --bind {} /run/nscd && chmod 755 /run/nscd \
             && chmod 777 /run/nscd/socket \
             && exec setpriv --reuid 54321 --regid 54322 --groups 998 sh -c \
             'whoami; id; id podling; getent passwd root 54321 | cut -d: -f1; getent passwd 77 || echo none; \
             echo | bash --norc -i 2>&1 | grep -o podling.$'",
            directory.path().display()
        );
        let seen = tokio::task::spawn_blocking(move || {
            while !directory.path().join("socket").exists() {
                std::thread::yield_now();
            }
            let mut command = Command::new("unshare");
            let output = command.args(["--mount", "sh", "-c", &script]).env("PS1", r"\u>").output().unwrap();
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        });
        let seen = seen.await.unwrap();
        let ids = "uid=54321(podling) gid=54322(podling) groups=";
        let expected = format!(
            "podling\n{ids}54322(podling),998(docker)\n{ids}998(docker),54322(podling)\n\
             root\npodling\nnone\npodling>"
        );
        assert!(seen.starts_with(&expected), "{seen}");
    }
}
