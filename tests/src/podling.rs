//! One Podling of a story's own: started, broken and started again, and gone without a trace at the end.
//!
//! Its workspaces are processes on this machine, or pods (`pods`): what only the former can do says so by its name or fails.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use podling_proto::control::v1::CreateWorkspaceRequest;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use crate::{
    agent_client::DialAddress,
    cli::Cli,
    client::Client,
    cluster::Namespace,
    program::program,
    running_processes,
    wait::{wait_blocking, wait_for, within},
};

mod agents;
mod observe;
mod pods;

pub use observe::names;
use pods::Pods;
pub use pods::are_wanted as on_pods;

/// How long everything may take to end when a story is over.
const END: Duration = Duration::from_secs(60);

/// How a story wants its Podling.
#[derive(Debug, Clone, Default)]
pub struct PodlingOptions {
    /// The data folder; absent: one in the story's own folder. Given when it must lie on a file system of its own. (Volumes of pods
    /// lie in it, too.)
    pub data: Option<PathBuf>,
    /// Behind a path longer than the 108 bytes that the address of a unix socket can hold.
    pub long_data_path: bool,
    /// A program and arguments to start `podling` with (`prlimit`, `unshare`); it must end in exec.
    pub launcher: Vec<String>,
    /// As pods, whatever the other stories are told of.
    pub force_pods: bool,
    /// More arguments for `podling up`.
    pub args: Vec<String>,
    /// Templates of the story's own: name and TOML.
    pub templates: Vec<(&'static str, &'static str)>,
    /// Where the first control plane dies as by kill -9, `ACTION:before` or `ACTION:after`; only debug builds do.
    pub die_at: Option<String>,
}

/// A running Podling.
#[derive(Debug)]
pub struct Podling {
    options: PodlingOptions,
    folder: PathBuf,
    data: PathBuf,
    home: PathBuf,
    url: String,
    token: String,
    up: Option<Child>,
    starts: u32,
    /// Where its workspaces are pods.
    pods: Option<Pods>,
    // Last, so that the folder goes when nothing uses it any more.
    _folder: tempfile::TempDir,
}

/// A workspace of the story.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

impl Podling {
    /// `podling up` on a fresh machine.
    pub async fn up() -> Self {
        Self::up_with(PodlingOptions::default()).await
    }

    /// The same with options.
    pub async fn up_with(options: PodlingOptions) -> Self {
        let mut podling = Self::prepare(options);
        podling.start("127.0.0.1:0").await;
        podling
    }

    /// A machine on which nothing runs yet.
    pub fn prepare(options: PodlingOptions) -> Self {
        let temp = tempfile::Builder::new().prefix("podling-story-").tempdir().expect("a folder");
        let folder = temp.path().to_owned();
        let home = folder.join("person");
        let data = match &options.data {
            Some(data) => data.clone(),
            None if options.long_data_path => folder.join("deep".repeat(30)).join("data"),
            None => folder.join("data"),
        };
        for needed in [home.as_path(), data.parent().expect("the data folder has a parent")] {
            fs::create_dir_all(needed).expect("a folder");
        }
        let templates = folder.join("templates");
        fs::create_dir(&templates).expect("a folder");
        for (name, text) in &options.templates {
            fs::write(templates.join(format!("{name}.toml")), text).expect("a template");
        }
        let (url, token) = (String::new(), String::new());
        let pods = (options.force_pods || on_pods())
            .then(|| Pods::new(options.data.as_ref().unwrap_or(&folder), &options));
        Self { options, folder, data, home, url, token, up: None, starts: 0, pods, _folder: temp }
    }

    /// Starts `podling up` again, at the same address, so that clients find it where it was.
    pub async fn restart(&mut self) {
        let address = self.address().to_string();
        self.start(&address).await;
    }

    /// The same, but it dies at this moment (see [`PodlingOptions::die_at`]): perhaps before it says that it is up.
    pub async fn restart_dying_at(&mut self, at: &str) {
        self.options.die_at = Some(at.to_owned());
        self.restart().await;
    }

    async fn start(&mut self, listen: &str) {
        self.starts += 1;
        let ready = self.folder.join(format!("up-{}.out", self.starts));
        let mut command = self.command(listen);
        command.env_clear().envs(self.cli().envs()).current_dir(&self.home);
        if self.pods.is_some() {
            command.envs(["KUBECONFIG"].map(|name| (name, std::env::var(name).expect("a cluster"))));
        }
        let die_at = self.options.die_at.take();
        command.envs(die_at.iter().map(|at| ("PODLING_TEST_DIE_AT", at)));
        // A group of its own, as a shell gives every job: Ctrl-C then reaches exactly this.
        command.process_group(0).stdin(Stdio::null());
        command.stdout(File::create(&ready).expect("a file"));
        command.stderr(File::create(self.log_file()).expect("a file"));
        self.up = Some(command.spawn().expect("podling up starts"));
        self.url = wait_for("it says its url", async || {
            if let Some(status) = self.up.as_mut().and_then(|up| up.try_wait().ok().flatten()) {
                let dead = die_at.is_some() && status.signal() == Some(Signal::KILL.as_raw());
                assert!(dead, "`podling up` ended with {status}: {}", self.log());
                return Some(self.url.clone());
            }
            let said = fs::read_to_string(&ready).ok()?;
            let (line, _) = said.split_once('\n')?;
            if let Some((_, url)) = line.split_once("listens at ") {
                return Some(url.to_owned());
            }
            let value: Value = serde_json::from_str(line).expect("the line is JSON");
            Some(value["url"].as_str().expect("it has a url").to_owned())
        })
        .await;
        let token = fs::read_to_string(self.data.join("root-token")).expect("the root token");
        self.token = token.trim().to_owned();
    }

    /// What is started: `podling up`, or the control plane of a cluster.
    fn command(&self, listen: &str) -> Command {
        let name = if self.pods.is_some() { "podling-control" } else { "podling" };
        let mut command = match self.options.launcher.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program(name));
                command
            }
            None => Command::new(program(name)),
        };
        match &self.pods {
            Some(pods) => command.args(pods.arguments()),
            None => command.args(["up", "--json"]),
        };
        command.args(["--listen", listen, "--data"]).arg(&self.data).args(&self.options.args);
        if self.pods.is_none() && !self.options.templates.is_empty() {
            command.arg("--templates").arg(self.folder.join("templates"));
        }
        command
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join(format!("up-{}.log", self.starts))
    }

    /// What `podling up` wrote for people since it was last started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens, as an address.
    pub fn address(&self) -> SocketAddr {
        let text = self.url.trim_start_matches("http://").trim_end_matches('/');
        text.parse().expect("the url holds an address")
    }

    /// The root token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A folder for the story's own files.
    pub fn dir(&self) -> &Path {
        &self.folder
    }

    /// The namespace of its pods.
    pub fn namespace(&self) -> &Namespace {
        self.pods.as_ref().expect("its workspaces are pods").namespace()
    }

    /// The process `podling up`.
    pub fn control_pid(&self) -> u32 {
        self.up.as_ref().expect("it is up").id()
    }

    /// The person at this machine.
    pub fn cli(&self) -> Cli {
        let cli = Cli::new(&self.home);
        match self.pods {
            None => cli.env("PODLING_DATA", self.data.display().to_string()),
            Some(_) => cli.env("PODLING_URL", &self.url).env("PODLING_TOKEN", &self.token),
        }
    }

    /// A client at the gateway with the root token.
    pub fn client(&self) -> Client {
        Client::new(&self.url).token(&self.token)
    }

    /// A client at another address, such as a proxy's.
    pub fn client_at(&self, address: SocketAddr) -> Client {
        Client::new(&format!("http://{address}")).token(&self.token)
    }

    /// Makes a workspace and waits until one can work in it.
    pub async fn workspace(&self, name: &str) -> Workspace {
        let request = CreateWorkspaceRequest { name: name.to_owned(), ..Default::default() };
        let made = within("Workspaces.Create", self.client().workspaces().create(request)).await;
        let id = made.expect("the workspace is made").into_inner().workspace.expect("it is described").id;
        let workspace = Workspace { id, name: name.to_owned() };
        self.wait_until_awake(&workspace).await;
        workspace
    }

    /// `podling create NAME FLAGS…`, awake.
    pub async fn create(&self, name: &str, flags: &[&str]) -> Workspace {
        let made = self.cli().run(&[&["create", name, "--json"], flags].concat()).await.ok().json();
        Workspace { id: made["id"].as_str().expect("it has an id").to_owned(), name: name.to_owned() }
    }

    /// The folder the workspace's user sees as home.
    pub fn home_dir(&self, workspace: &Workspace) -> PathBuf {
        match &self.pods {
            Some(pods) => pods.home_dir(&workspace.id),
            None => self.data.join("workspaces").join(&workspace.id).join("home"),
        }
    }

    /// Where agents dial the control plane.
    pub fn agents_listen_address(&self) -> DialAddress {
        match &self.pods {
            Some(pods) => DialAddress::Tcp(pods.agents_listen_address()),
            None => DialAddress::Unix(self.data.join("run/control.sock")),
        }
    }

    /// kill -9 of the control plane.
    pub fn kill_control(&mut self) {
        let mut up = self.up.take().expect("it is up");
        up.kill().expect("it can be killed");
        up.wait().expect("it ends");
    }

    /// Ctrl-C on `podling up`.
    pub fn interrupt(&self) {
        kill_process_group(pid(self.control_pid()), Signal::INT).expect("it can be interrupted");
    }

    /// The same; waits for its end.
    pub async fn ctrl_c(&mut self) -> ExitStatus {
        self.interrupt();
        self.wait_exit().await
    }

    /// Waits until `podling up` has ended by itself, as `podling down` makes it.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let mut up = self.up.take().expect("it is up");
        wait_exit(&mut up).await
    }

    /// Everything of this story that runs.
    pub fn running_processes(&self) -> Vec<running_processes::RunningProcess> {
        let mut left = running_processes::in_dir(&self.folder);
        if !self.data.starts_with(&self.folder) {
            left.extend(
                running_processes::in_dir(&self.data)
                    .into_iter()
                    .filter(|l| !left.contains(l))
                    .collect::<Vec<_>>(),
            );
        }
        left
    }

    fn down(&mut self) -> Option<ExitStatus> {
        let mut up = self.up.take()?;
        if self.pods.is_some() {
            signal(up.id(), Signal::TERM);
            let mut status = None;
            wait_blocking(END, || {
                status = up.try_wait().ok().flatten();
                status.is_some()
            });
            let _ = (up.kill(), up.wait());
            return status;
        }
        let mut command = Command::new(program("podling"));
        command.args(["down", "--force"]).env_clear().envs(self.cli().envs()).stdin(Stdio::null());
        let mut down = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let mut status = None;
        wait_blocking(END, || down.try_wait().ok().flatten().is_some());
        wait_blocking(END, || {
            status = up.try_wait().ok().flatten();
            status.is_some()
        });
        let _ = (down.kill(), down.wait(), up.kill(), up.wait());
        status
    }
}

impl Drop for Podling {
    fn drop(&mut self) {
        let was_up = self.up.is_some();
        if thread::panicking() {
            eprintln!("--- what podling up wrote ---\n{}", self.log());
        }
        let status = self.down();
        // A story may leave the control plane dead on purpose; then the workspaces are ours to end.
        let gone = was_up && wait_blocking(END, || self.running_processes().is_empty());
        let left = self.running_processes();
        running_processes::kill_all(&left);
        wait_blocking(END, || self.running_processes().is_empty());
        if was_up && !thread::panicking() {
            assert!(gone, "left running after `podling down --force`: {left:#?}\n{}", self.log());
            let status = status.expect("`podling up` ends after `podling down --force`");
            assert!(status.success(), "`podling up` ended with {status}\n{}", self.log());
        }
    }
}

async fn wait_exit(up: &mut Child) -> ExitStatus {
    wait_for("`podling up` ends", async || up.try_wait().ok().flatten()).await
}

fn signal(process: u32, signal: Signal) {
    kill_process(pid(process), signal).expect("the process can be signalled");
}

fn pid(process: u32) -> Pid {
    i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id")
}
