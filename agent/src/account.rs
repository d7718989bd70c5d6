//! The account of the workspace's programs: the user name and the group name that belong to the
//! agent's uid and gid.
//!
//! A pod's uid seldom has an entry in the image's `/etc/passwd`. Without an entry, shells show "I
//! have no name!", and programs such as ssh fail. If the files are writable, the missing entries
//! are appended to them. Otherwise the agent answers lookups of the C library in place of nscd,
//! which glibc and musl ask on a fixed socket. That needs no package and no permission in the
//! image.

mod name_service;

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::process::{getgid, getuid};

pub use self::name_service::NameService;

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

    /// Adds entries for the uid and the gid of this process if they have none: to the files if
    /// those are writable, else only to the database for the [`NameService`]. `home` and `shell`
    /// are those of the new user.
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

/// One line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserEntry {
    pub name: String,
    pub uid: u32,
    /// The user's primary group.
    pub gid: u32,
    pub comment: String,
    pub home: String,
    pub shell: String,
}

/// One line of `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupEntry {
    pub name: String,
    pub gid: u32,
    /// Names of the users that have the group in addition to their primary group.
    pub members: Vec<String>,
}

/// The users and groups of an image. For a name or an id that occurs twice, the first entry counts,
/// as for the C library.
#[derive(Debug, Clone, Default)]
pub struct AccountDatabase {
    users: Vec<UserEntry>,
    groups: Vec<GroupEntry>,
}

impl AccountDatabase {
    /// Reads the files. A file that cannot be read counts as empty, and lines that are not valid
    /// are skipped.
    fn read(passwd: &Path, group: &Path) -> Self {
        let text = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let (passwd, group) = (text(passwd).unwrap_or_default(), text(group).unwrap_or_default());
        Self {
            users: passwd.lines().filter_map(UserEntry::parse).collect(),
            groups: group.lines().filter_map(GroupEntry::parse).collect(),
        }
    }

    fn extend(&mut self, user: Option<UserEntry>, group: Option<GroupEntry>) {
        self.users.extend(user);
        self.groups.extend(group);
    }

    pub fn user_by_id(&self, uid: u32) -> Option<&UserEntry> {
        self.users.iter().find(|user| user.uid == uid)
    }

    pub fn user_by_name(&self, name: &str) -> Option<&UserEntry> {
        self.users.iter().find(|user| user.name == name)
    }

    pub fn group_by_id(&self, gid: u32) -> Option<&GroupEntry> {
        self.groups.iter().find(|group| group.gid == gid)
    }

    pub fn group_by_name(&self, name: &str) -> Option<&GroupEntry> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Returns the gids of the groups that name the user as a member.
    pub fn supplementary_groups(&self, user: &str) -> Vec<u32> {
        let with_user = self.groups.iter().filter(|group| group.members.iter().any(|member| member == user));
        with_user.map(|group| group.gid).collect()
    }

    /// Returns `name`, or a name with the id if a user or group has it.
    fn unused_name(&self, name: &str, id: u32) -> String {
        let is_taken = self.user_by_name(name).is_some() || self.group_by_name(name).is_some();
        if is_taken { format!("{name}-{id}") } else { name.to_owned() }
    }
}

impl UserEntry {
    fn parse(line: &str) -> Option<Self> {
        let [name, _password, uid, gid, comment, home, shell] = fields(line)?;
        Some(Self {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            comment: comment.to_owned(),
            home: home.to_owned(),
            shell: shell.to_owned(),
        })
    }

    /// Returns the entry as a line without its end.
    fn line(&self) -> String {
        let Self { name, uid, gid, comment, home, shell } = self;
        format!("{name}:x:{uid}:{gid}:{comment}:{home}:{shell}")
    }
}

impl GroupEntry {
    fn parse(line: &str) -> Option<Self> {
        let [name, _password, gid, members] = fields(line)?;
        Some(Self {
            name: name.to_owned(),
            gid: gid.parse().ok()?,
            members: members.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        })
    }

    /// Returns the entry as a line without its end.
    fn line(&self) -> String {
        format!("{}:x:{}:{}", self.name, self.gid, self.members.join(","))
    }
}

/// Splits a line into its fields; `None` if their number is not `N` or the name is empty.
fn fields<const N: usize>(line: &str) -> Option<[&str; N]> {
    let fields: Vec<_> = line.trim_end().split(':').collect();
    fields.try_into().ok().filter(|fields: &[&str; N]| !fields[0].is_empty())
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

    #[test]
    fn entries_round_trip_and_bad_lines_are_skipped() {
        let line = "ada:x:1000:100:Ada,,,:/home/ada:/bin/zsh";
        assert_eq!(UserEntry::parse(line).unwrap().line(), line);
        assert_eq!(GroupEntry::parse("docker:x:998:ada,bob").unwrap().members, ["ada", "bob"]);
        assert_eq!(GroupEntry::parse("users:x:100:").unwrap().line(), "users:x:100:");
        for bad in ["", "# a comment", "+", "ada:x:one:1::/:/bin/sh", ":x:1:1::/:/bin/sh", "ada:x:-1:1::/:"] {
            assert_eq!(UserEntry::parse(bad), None, "{bad}");
        }
    }
}
