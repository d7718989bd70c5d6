//! The account of the workspace's programs: the user name and the group name that belong to the
//! agent's uid and gid.
//!
//! A pod's uid seldom has an entry in the image's `/etc/passwd`. Without an entry, shells show "I
//! have no name!", and programs such as ssh fail. If the files are writable, the missing entries are
//! appended to them. Otherwise the agent answers lookups of the C library in place of nscd, which
//! glibc and musl ask on a fixed socket. That needs no package and no permission in the image.

mod database;
mod name_service;

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::process::{getgid, getuid};

pub use self::{
    database::{AccountDatabase, GroupEntry, UserEntry},
    name_service::NameService,
};

/// Name of the user and of the group that are added for a uid or gid without a name.
const NAME: &str = "podling";
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// How programs find the entries of the workspace's user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountSource {
    /// The image's files contain them.
    Files,
    /// Programs that ask the name service find them; others find only numbers.
    NameService,
    /// The files lack an entry for the user. Another source of the machine may have it.
    Elsewhere,
}

/// The account of this process, with the users and groups of the image.
#[derive(Debug, Clone)]
pub struct Account {
    /// Name of the user; `None` if the uid has no entry and none was added.
    pub user: Option<String>,
    pub source: AccountSource,
    /// The entries of the files, and those that were added.
    pub database: AccountDatabase,
}

/// Paths of the databases. Tests replace them.
#[derive(Debug, Clone)]
pub struct AccountFiles {
    pub passwd: PathBuf,
    pub group: PathBuf,
}

impl Default for AccountFiles {
    fn default() -> Self {
        Self { passwd: PASSWD.into(), group: GROUP.into() }
    }
}

impl Account {
    /// Returns the account of this process as the files have it. Adds no entry.
    pub fn of_process(files: &AccountFiles) -> Self {
        let database = AccountDatabase::read(&files.passwd, &files.group);
        let user = database.user_by_id(getuid().as_raw()).map(|user| user.name.clone());
        let source = if user.is_some() { AccountSource::Files } else { AccountSource::Elsewhere };
        Self { user, source, database }
    }

    /// Adds entries for the uid and the gid of this process if they have none: to the files if those
    /// are writable, else only to the database for the [`NameService`]. `home` and `shell` are those
    /// of the new user.
    pub fn ensure(files: &AccountFiles, home: &Path, shell: &str) -> Self {
        let mut account = Self::of_process(files);
        let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
        let group = account.database.group_by_id(gid).is_none().then(|| GroupEntry {
            name: account.database.unused_name(NAME, gid),
            gid,
            members: Vec::new(),
        });
        let user = account.database.user_by_id(uid).is_none().then(|| UserEntry {
            name: account.database.unused_name(NAME, uid),
            uid,
            gid,
            comment: String::new(),
            home: home.display().to_string(),
            shell: shell.to_owned(),
        });
        let lines = [
            (&files.group, group.as_ref().map(GroupEntry::line)),
            (&files.passwd, user.as_ref().map(UserEntry::line)),
        ];
        let appended = lines.iter().filter_map(|(file, line)| line.as_ref().map(|line| append(file, line)));
        account.source = match appended.collect::<io::Result<()>>() {
            Ok(()) => AccountSource::Files,
            Err(_) => AccountSource::NameService,
        };
        account.database.extend(user, group);
        account.user = account.database.user_by_id(uid).map(|user| user.name.clone());
        account
    }
}

/// Appends a line to a file that exists.
fn append(file: &Path, line: &str) -> io::Result<()> {
    let ends_line = std::fs::read(file)?.last().is_none_or(|last| *last == b'\n');
    let line = format!("{}{line}\n", if ends_line { "" } else { "\n" });
    OpenOptions::new().append(true).open(file)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn files(directory: &Path, passwd: &str) -> AccountFiles {
        let files = AccountFiles { passwd: directory.join("passwd"), group: directory.join("group") };
        fs::write(&files.passwd, passwd).unwrap();
        fs::write(&files.group, "wheel:x:10:\n").unwrap();
        files
    }

    #[test]
    fn listed_user_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
        let passwd = format!("jovyan:x:{uid}:{gid}::/home/jovyan:/bin/sh\n");
        let files = files(directory.path(), &passwd);
        fs::write(&files.group, format!("users:x:{gid}:\n")).unwrap();
        let account = Account::ensure(&files, Path::new("/workspace"), "/bin/bash");
        assert_eq!((account.user.as_deref(), account.source), (Some("jovyan"), AccountSource::Files));
        assert_eq!(fs::read_to_string(&files.passwd).unwrap(), passwd);
    }

    #[test]
    fn missing_user_is_appended_to_writable_files() {
        let directory = tempfile::tempdir().unwrap();
        let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
        // The name is taken, and the last line has no end.
        let files = files(directory.path(), "podling:x:4294967000:1::/:/bin/sh");
        let account = Account::ensure(&files, Path::new("/workspace"), "/bin/bash");
        let name = format!("podling-{uid}");
        assert_eq!((account.user.as_deref(), account.source), (Some(name.as_str()), AccountSource::Files));
        let expected =
            format!("podling:x:4294967000:1::/:/bin/sh\n{name}:x:{uid}:{gid}::/workspace:/bin/bash\n");
        assert_eq!(fs::read_to_string(&files.passwd).unwrap(), expected);
        assert!(fs::read_to_string(&files.group).unwrap().ends_with(&format!(":x:{gid}:\n")));
        let again = Account::ensure(&files, Path::new("/workspace"), "/bin/bash");
        assert_eq!(again.user, account.user, "entries are added once");
        assert_eq!(fs::read_to_string(&files.passwd).unwrap(), expected);
    }

    #[test]
    fn unwritable_files_leave_entries_to_name_service() {
        let directory = tempfile::tempdir().unwrap();
        let missing = AccountFiles {
            passwd: directory.path().join("absent/passwd"),
            group: directory.path().join("absent/group"),
        };
        let account = Account::ensure(&missing, Path::new("/workspace"), "/bin/bash");
        assert_eq!(account.source, AccountSource::NameService);
        assert_eq!(account.user.as_deref(), Some("podling"));
        let read_only = files(directory.path(), "");
        fs::set_permissions(&read_only.passwd, fs::Permissions::from_mode(0o444)).unwrap();
        let is_root = getuid().is_root();
        let source = Account::ensure(&read_only, Path::new("/workspace"), "/bin/bash").source;
        assert_eq!(source == AccountSource::Files, is_root, "root may write every file");
    }
}
