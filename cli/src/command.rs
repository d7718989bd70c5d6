//! Defines the command line: the global options, and one module per family of subcommands.

pub mod archives;
pub mod attach;
pub mod completions;
pub mod control_plane;
pub mod cp;
pub mod create;
pub mod explain;
pub mod export;
pub mod keep_awake;
pub mod lifecycle;
pub mod ls;
pub mod run;
pub mod settings;
pub mod token;

use std::ffi::OsString;

use clap::{ArgMatches, CommandFactory as _, Parser, Subcommand};

use self::{
    archives::{ArchivesArgs, RestoreArgs},
    attach::AttachArgs,
    completions::CompletionsArgs,
    control_plane::{DownArgs, UpArgs},
    cp::{CpArgs, endpoint::CopyEndpoint},
    create::CreateArgs,
    explain::ExplainArgs,
    export::ExportArgs,
    keep_awake::KeepAwakeArgs,
    lifecycle::{RmArgs, SleepArgs, UndeleteArgs, WakeArgs},
    ls::LsArgs,
    run::{HintArgs, RunArgs},
    settings::{PolicyArgs, ResizeArgs},
    token::TokenArgs,
};
use crate::{
    client::Context,
    failure::{CommandFailure, EXIT_CODES},
    target::GlobalOptions,
};

/// Create and use workspaces: terminals, commands and files in containers
///
/// A workspace falls asleep when it is idle, keeps its files, and wakes when it is used again.
/// Start a control plane with `podling up`, then create a workspace with `podling create demo`.
#[derive(Debug, Parser)]
#[command(name = "podling", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct CommandLine {
    #[command(flatten)]
    pub global: GlobalOptions,
    #[command(subcommand)]
    pub command: PodlingCommand,
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum PodlingCommand {
    Up(Box<UpArgs>),
    Down(DownArgs),
    Create(CreateArgs),
    Ls(LsArgs),
    Attach(AttachArgs),
    Run(RunArgs),
    Cp(CpArgs),
    Export(ExportArgs),
    KeepAwake(KeepAwakeArgs),
    Explain(ExplainArgs),
    Policy(PolicyArgs),
    Resize(ResizeArgs),
    Sleep(SleepArgs),
    Wake(WakeArgs),
    Rm(RmArgs),
    Undelete(UndeleteArgs),
    Archives(ArchivesArgs),
    Restore(RestoreArgs),
    Token(TokenArgs),
    Completions(CompletionsArgs),
    #[command(hide = true, aliases = ["ssh", "shell"])]
    Exec(HintArgs),
}

/// Arguments that name a workspace.
const NAME_ARGUMENTS: &[&str] = &["name", "names", "workspace"];
/// Arguments of `cp`, one of which names a workspace with a path.
const ENDPOINT_ARGUMENTS: &[&str] = &["from", "to"];

/// Returns the workspace that a command line names. Returns `None` if it names none or several.
pub fn named_workspace(matches: &ArgMatches) -> Option<String> {
    let mut matches = matches;
    while let Some((_, inner)) = matches.subcommand() {
        matches = inner;
    }
    let names = NAME_ARGUMENTS.iter().filter_map(|id| matches.try_get_many::<String>(id).ok().flatten());
    let mut names: Vec<_> = names.flatten().cloned().collect();
    let endpoints =
        ENDPOINT_ARGUMENTS.iter().filter_map(|id| matches.try_get_one::<OsString>(id).ok().flatten());
    names.extend(endpoints.filter_map(|endpoint| match CopyEndpoint::parse(endpoint) {
        Ok(CopyEndpoint::Remote { workspace, .. }) => Some(workspace),
        _ => None,
    }));
    if names.len() == 1 { names.pop() } else { None }
}

impl PodlingCommand {
    /// Runs the command and returns the process exit code.
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        match self {
            Self::Up(up) => up.run(context).await,
            Self::Down(down) => down.run(context).await,
            Self::Create(create) => create.run(context).await,
            Self::Ls(ls) => ls.run(context).await,
            Self::Attach(attach) => attach.run(context).await,
            Self::Run(run) => run.run(context).await,
            Self::Cp(cp) => cp.run(context).await,
            Self::Export(export) => export.run(context).await,
            Self::KeepAwake(keep_awake) => keep_awake.run(context).await,
            Self::Explain(explain) => explain.run(context).await,
            Self::Policy(policy) => policy.run(context).await,
            Self::Resize(resize) => resize.run(context).await,
            Self::Sleep(sleep) => sleep.run(context).await,
            Self::Wake(wake) => wake.run(context).await,
            Self::Rm(rm) => rm.run(context).await,
            Self::Undelete(undelete) => undelete.run(context).await,
            Self::Archives(archives) => archives.run(context).await,
            Self::Restore(restore) => restore.run(context).await,
            Self::Token(token) => token.run(context).await,
            Self::Completions(completions) => completions.run(context, CommandLine::command()).await,
            Self::Exec(exec) => exec.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn command_line_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn workspace_of_a_command_line_is_found() {
        for (line, workspace) in [
            ("podling attach demo", Some("demo")),
            ("podling run -e A=b demo -- ls name", Some("demo")),
            ("podling policy set demo --idle-timeout 5m", Some("demo")),
            ("podling --json wake demo", Some("demo")),
            ("podling cp demo:a /tmp/b", Some("demo")),
            ("podling cp a 2019-01-02:x", None),
            ("podling wake demo other", None),
            ("podling ls", None),
        ] {
            let matches = CommandLine::command().try_get_matches_from(line.split_whitespace()).expect(line);
            assert_eq!(named_workspace(&matches).as_deref(), workspace, "{line}");
        }
    }

    #[test]
    fn documented_command_lines_parse() {
        for line in [
            "podling create demo --template shell --idle-timeout 5s --json",
            "podling create demo --cpu 500m --memory 2GiB --storage 100Gi",
            "podling run demo -- ls -l --color",
            "podling run demo ls -l",
            "podling ls --json",
            "podling up --data /d --listen 127.0.0.1:0 --json",
            "podling --data /d up --json",
            "podling --json --data /d ls",
            "podling explain demo --json",
            "podling down --force",
            "podling keep-awake demo 2h",
            "podling keep-awake demo -- make -j8",
            "podling keep-awake demo --release",
            "podling rm demo other",
            "podling rm demo --discard",
            "podling export demo",
            "podling export demo out.zip --path src --ignore *.pyc --ignore target/ --ignore-files",
            "podling export demo - --json",
            "podling rm demo --discard --yes --no-wait",
            "podling create demo --warning 1m --max-awake 12h --archive-after 1d --keep-archives 30d",
            "podling sleep demo other --force --no-wait",
            "podling wake demo other --no-wait",
            "podling undelete demo other",
            "podling archives",
            "podling archives demo --json",
            "podling archives --all-owners",
            "podling restore demo",
            "podling restore workspace-abcdefghijkl-20260102-030405 --as again --no-wait",
            "podling policy show demo",
            "podling policy set demo --idle-timeout 5m --warning 30s --work-cap 1h",
            "podling policy set demo --presence-cap 10m --max-awake 1d",
            "podling policy set demo --archive-after 2d --keep-archives 90d",
            "podling attach demo --new -- python3 -q",
            "podling token create --verbs read,terminal --workspace demo --ttl 1h",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn invalid_command_lines_are_rejected() {
        for line in [
            "podling create",
            "podling create demo --cpu much",
            "podling create demo --storage 0",
            "podling run demo",
            "podling keep-awake demo",
            "podling keep-awake demo 5 minutes",
            "podling keep-awake demo 2h -- make",
            "podling token create --verbs fly",
            "podling attach demo --detach-key x",
            "podling sleep",
            "podling wake --force demo",
            "podling rm demo --yes",
            "podling archives demo --all-owners",
            "podling restore",
            "podling policy demo",
            "podling policy set demo --idle-timeout soon",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
