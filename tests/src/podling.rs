//! Starts a Podling (a control plane with its workspaces) for one story, which can kill and restart
//! it. Dropping it ends all of its processes.
//!
//! Workspaces are processes on this machine, or pods (module `pods`). Methods that only one backend
//! supports panic on the other.

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
use rustix::process::{Signal, kill_process_group};
use serde_json::Value;

use crate::{
    Client,
    cli::Cli,
    cluster::Namespace,
    net::DialAddress,
    processes::{self, RunningProcess, signal, to_pid, wait_or_kill},
    program,
    wait::{wait_blocking, wait_for, within},
};

mod agents;
mod observe;
mod pods;

use pods::PodCluster;
pub use pods::are_selected as on_pods;

/// Time limit for the end of all processes after a story.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Options for the start of a [`Podling`].
#[derive(Debug, Clone, Default)]
pub struct PodlingOptions {
    /// Data directory, for stories that need a separate file system. It also contains the volumes
    /// of pods. Default: a directory within the story's directory.
    pub data: Option<PathBuf>,
    /// Whether the path of the data directory is longer than the 108 bytes of a socket address.
    pub long_data_path: bool,
    /// Command prefix that starts the control plane, such as `unshare`. It must exec the program.
    pub launcher: Vec<String>,
    /// Whether workspaces are pods even if the other stories run on processes.
    pub force_pods: bool,
    /// Additional arguments of the control plane.
    pub args: Vec<String>,
    /// Additional templates: name and TOML.
    pub templates: Vec<(&'static str, &'static str)>,
    /// Point at which the first control plane kills itself with SIGKILL: `ACTION:before` or
    /// `ACTION:after`. Only debug builds support it.
    pub failpoint: Option<String>,
}

/// A control plane with its workspaces, for one story. Dropping it stops them and asserts that no
/// process is left.
#[derive(Debug)]
pub struct Podling {
    options: PodlingOptions,
    dir: PathBuf,
    data: PathBuf,
    home: PathBuf,
    url: String,
    token: String,
    up: Option<Child>,
    starts: u32,
    /// Present if workspaces are pods.
    pods: Option<PodCluster>,
    // The last field, so that the directory is removed after all users of it are dropped.
    _dir: tempfile::TempDir,
}

/// Id and name of a story's workspace.
#[derive(Debug, Clone)]
pub struct Workspace {
    pub id: String,
    pub name: String,
}

impl Podling {
    /// Starts a control plane with an empty data directory, and waits until it is ready.
    pub async fn up() -> Self {
        Self::up_with(PodlingOptions::default()).await
    }

    /// Starts a control plane with these options, and waits until it is ready.
    pub async fn up_with(options: PodlingOptions) -> Self {
        let mut podling = Self::prepare(options);
        podling.start("127.0.0.1:0").await;
        podling
    }

    /// Creates the directories, and the namespace for pods, without starting a control plane.
    pub fn prepare(options: PodlingOptions) -> Self {
        let temp = tempfile::Builder::new().prefix("podling-story-").tempdir().expect("a directory");
        let dir = temp.path().to_owned();
        let home = dir.join("home");
        let data = match &options.data {
            Some(data) => data.clone(),
            None if options.long_data_path => dir.join("deep".repeat(30)).join("data"),
            None => dir.join("data"),
        };
        for needed in [home.as_path(), data.parent().expect("the data directory has a parent")] {
            fs::create_dir_all(needed).expect("a directory");
        }
        let templates = dir.join("templates");
        fs::create_dir(&templates).expect("a directory");
        for (name, text) in &options.templates {
            fs::write(templates.join(format!("{name}.toml")), text).expect("a template");
        }
        let (url, token) = (String::new(), String::new());
        let pods = (options.force_pods || on_pods())
            .then(|| PodCluster::new(options.data.as_ref().unwrap_or(&dir), &options));
        Self { options, dir, data, home, url, token, up: None, starts: 0, pods, _dir: temp }
    }

    /// Starts the control plane again at the same address, so that clients can reconnect.
    pub async fn restart(&mut self) {
        let address = self.address().to_string();
        self.start(&address).await;
    }

    /// Starts the control plane again with this [`PodlingOptions::failpoint`]. It may die before it is
    /// ready.
    pub async fn restart_with_failpoint(&mut self, at: &str) {
        self.options.failpoint = Some(at.to_owned());
        self.restart().await;
    }

    /// Starts the control plane again with one more argument, for this start only.
    pub async fn restart_with_argument(&mut self, argument: &str) {
        self.options.args.push(argument.to_owned());
        self.restart().await;
        self.options.args.pop();
    }

    /// Starts a control plane that must fail, and returns what it prints to stderr.
    pub async fn failing_start(&mut self) -> String {
        let mut command = self.command("127.0.0.1:0");
        self.set_environment(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(self.dir.join("failed.log")).expect("a file"));
        let mut child = command.spawn().expect("podling up starts");
        let status = wait_exit(&mut child).await;
        let printed = fs::read_to_string(self.dir.join("failed.log")).expect("a log");
        assert!(!status.success(), "the start fails: {printed}");
        printed
    }

    /// Uses another data directory from the next start on, within the story's directory. The control
    /// plane must not run.
    pub fn set_data(&mut self, data: PathBuf) {
        assert!(self.up.is_none(), "the control plane uses the directory");
        self.data = data;
    }

    fn set_environment(&self, command: &mut Command) {
        command.env_clear().envs(self.cli().envs()).current_dir(&self.home);
        if self.pods.is_some() {
            command.envs(["KUBECONFIG"].map(|name| (name, std::env::var(name).expect("a cluster"))));
        }
    }

    async fn start(&mut self, listen: &str) {
        self.starts += 1;
        let ready = self.dir.join(format!("up-{}.out", self.starts));
        let mut command = self.command(listen);
        self.set_environment(&mut command);
        let failpoint = self.options.failpoint.take();
        command.envs(failpoint.iter().map(|at| ("PODLING_TEST_FAILPOINT", at)));
        // A process group of its own, as a shell gives to each job, so that Ctrl-C reaches only
        // this command.
        command.process_group(0).stdin(Stdio::null());
        command.stdout(File::create(&ready).expect("a file"));
        command.stderr(File::create(self.log_file()).expect("a file"));
        self.up = Some(command.spawn().expect("podling up starts"));
        self.url = wait_for("podling prints its URL", async || {
            if let Some(status) = self.up.as_mut().and_then(|up| up.try_wait().ok().flatten()) {
                let crashed_as_requested =
                    failpoint.is_some() && status.signal() == Some(Signal::KILL.as_raw());
                assert!(crashed_as_requested, "`podling up` ended with {status}: {}", self.log());
                return Some(self.url.clone());
            }
            let printed = fs::read_to_string(&ready).ok()?;
            let (line, _) = printed.split_once('\n')?;
            if let Some((_, url)) = line.split_once("listens at ") {
                return Some(url.to_owned());
            }
            let value: Value = serde_json::from_str(line).expect("first line is JSON");
            Some(value["url"].as_str().expect("JSON has a url").to_owned())
        })
        .await;
        let token = fs::read_to_string(self.data.join("root-token")).expect("the root token");
        self.token = token.trim().to_owned();
    }

    /// Returns the command `podling up`, or `podling-control` for pods.
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
            Some(pods) => {
                let has_store = self.options.args.iter().any(|arg| arg == "--backups");
                let store = format!("file://{}", self.data.join("backups").display());
                command.args(pods.arguments()).args(["--backups", &store].iter().filter(|_| !has_store))
            }
            None => command.args(["up", "--json"]),
        };
        command.args(["--listen", listen, "--data"]).arg(&self.data).args(&self.options.args);
        if self.pods.is_none() && !self.options.templates.is_empty() {
            command.arg("--templates").arg(self.dir.join("templates"));
        }
        command
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join(format!("up-{}.log", self.starts))
    }

    /// Returns the log of the control plane since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the address that the gateway listens on.
    pub fn address(&self) -> SocketAddr {
        let text = self.url.trim_start_matches("http://").trim_end_matches('/');
        text.parse().expect("the url holds an address")
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Returns the directory for the story's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the namespace of the pods. Panics if workspaces are processes.
    pub fn namespace(&self) -> &Namespace {
        self.pods.as_ref().expect("workspaces are pods").namespace()
    }

    /// Returns the process id of the control plane. Panics if it does not run.
    pub fn control_pid(&self) -> u32 {
        self.up.as_ref().expect("control plane runs").id()
    }

    /// Returns a user's shell on this machine, configured for this control plane.
    pub fn cli(&self) -> Cli {
        let cli = Cli::new(&self.home);
        match self.pods {
            None => cli.env("PODLING_DATA", self.data.display().to_string()),
            Some(_) => cli.env("PODLING_URL", &self.url).env("PODLING_TOKEN", &self.token),
        }
    }

    /// Returns a client of the gateway with the root token.
    pub fn client(&self) -> Client {
        Client::new(&self.url).token(&self.token)
    }

    /// Returns a client with the root token that connects to another address, such as a proxy's.
    pub fn client_at(&self, address: SocketAddr) -> Client {
        Client::new(&format!("http://{address}")).token(&self.token)
    }

    /// Creates a workspace and waits until its agent is connected.
    pub async fn workspace(&self, name: &str) -> Workspace {
        let request = CreateWorkspaceRequest { name: name.to_owned(), ..Default::default() };
        let workspace = self.create_requested(request).await;
        self.wait_until_awake(&workspace).await;
        workspace
    }

    /// Creates a workspace without waiting until it is awake.
    pub async fn create_requested(&self, request: CreateWorkspaceRequest) -> Workspace {
        let name = request.name.clone();
        let made = within("Workspaces.Create", self.client().workspaces().create(request)).await;
        let made = made.expect("workspace is created").into_inner().workspace;
        Workspace { id: made.expect("response has the workspace").id, name }
    }

    /// Runs `podling create NAME FLAGS…`, which by default waits until the workspace is awake.
    pub async fn create(&self, name: &str, flags: &[&str]) -> Workspace {
        let made = self.cli().run(&[&["create", name, "--json"], flags].concat()).await.ok().json();
        Workspace { id: made["id"].as_str().expect("JSON has an id").to_owned(), name: name.to_owned() }
    }

    /// Returns the path of the workspace's home directory on this machine.
    pub fn home_dir(&self, workspace: &Workspace) -> PathBuf {
        match &self.pods {
            Some(pods) => pods.home_dir(&workspace.id),
            None => self.data.join("workspaces").join(&workspace.id).join("home"),
        }
    }

    /// Returns the address that agents connect to.
    pub fn agents_listen_address(&self) -> DialAddress {
        match &self.pods {
            Some(pods) => DialAddress::Tcp(pods.agents_listen_address()),
            None => DialAddress::Unix(self.data.join("run/control.sock")),
        }
    }

    /// Kills the control plane with SIGKILL and waits until it has ended.
    pub fn kill_control(&mut self) {
        let mut up = self.up.take().expect("control plane runs");
        up.kill().expect("control plane is killed");
        up.wait().expect("control plane is reaped");
    }

    /// Sends SIGINT to the process group of `podling up`, as Ctrl-C does.
    pub fn interrupt(&self) {
        kill_process_group(to_pid(self.control_pid()), Signal::INT).expect("process group is signalled");
    }

    /// Interrupts `podling up` as Ctrl-C does, and waits until it has ended.
    pub async fn ctrl_c(&mut self) -> ExitStatus {
        self.interrupt();
        self.wait_exit().await
    }

    /// Waits until `podling up` has ended, for example after `podling down`.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let mut up = self.up.take().expect("control plane runs");
        wait_exit(&mut up).await
    }

    /// Returns all running processes of this story.
    pub fn running_processes(&self) -> Vec<RunningProcess> {
        let mut left = processes::in_dir(&self.dir);
        if !self.data.starts_with(&self.dir) {
            left.extend(processes::in_dir(&self.data));
            left.sort_by_key(|process| process.pid);
            left.dedup();
        }
        left
    }

    fn stop(&mut self) -> Option<ExitStatus> {
        let mut up = self.up.take()?;
        if self.pods.is_some() {
            signal(up.id(), Signal::TERM);
            return wait_or_kill(&mut up, END_TIMEOUT);
        }
        let mut command = Command::new(program("podling"));
        command.args(["down", "--force"]).env_clear().envs(self.cli().envs()).stdin(Stdio::null());
        let mut down = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        wait_or_kill(&mut down, END_TIMEOUT);
        wait_or_kill(&mut up, END_TIMEOUT)
    }
}

impl Drop for Podling {
    fn drop(&mut self) {
        let was_up = self.up.is_some();
        if thread::panicking() {
            eprintln!("--- podling up log ---\n{}", self.log());
        }
        let status = self.stop();
        // If a story leaves the control plane dead on purpose, its workspaces still run.
        let gone = was_up && wait_blocking(END_TIMEOUT, || self.running_processes().is_empty());
        let left = self.running_processes();
        processes::kill_all(&left);
        wait_blocking(END_TIMEOUT, || self.running_processes().is_empty());
        if was_up && !thread::panicking() {
            assert!(gone, "processes survive `podling down --force`: {left:#?}\n{}", self.log());
            let status = status.expect("`podling up` ends after `podling down --force`");
            assert!(status.success(), "`podling up` ended with {status}\n{}", self.log());
        }
    }
}

async fn wait_exit(up: &mut Child) -> ExitStatus {
    wait_for("`podling up` ends", async || up.try_wait().ok().flatten()).await
}
