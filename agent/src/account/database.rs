//! Users and groups, in the format of `/etc/passwd` and `/etc/group`.

use std::{fs, path::Path};

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
    /// Reads the files. A file that cannot be read counts as empty, and lines that are not valid are
    /// skipped.
    pub(super) fn read(passwd: &Path, group: &Path) -> Self {
        let text = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let (passwd, group) = (text(passwd).unwrap_or_default(), text(group).unwrap_or_default());
        Self {
            users: passwd.lines().filter_map(UserEntry::parse).collect(),
            groups: group.lines().filter_map(GroupEntry::parse).collect(),
        }
    }

    pub(super) fn extend(&mut self, user: Option<UserEntry>, group: Option<GroupEntry>) {
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
    pub(super) fn unused_name(&self, name: &str, id: u32) -> String {
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
    pub(super) fn line(&self) -> String {
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
    pub(super) fn line(&self) -> String {
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
    use super::*;

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
