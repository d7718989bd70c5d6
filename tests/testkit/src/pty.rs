//! Runs a program, such as `podling attach`, on a PTY as a terminal window does.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Termios, Winsize, tcgetattr, tcsetwinsize},
};
use tokio::process::{Child, Command};

use crate::wait::wait_for;

/// A terminal window with a program in it.
#[derive(Debug)]
pub struct TerminalWindow {
    controller: File,
    terminal: OwnedFd,
    output: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

/// Text that marks the end of the program's output. It is removed before the output is returned.
const END_MARK: &str = "[the program has ended]";

impl TerminalWindow {
    /// Opens a window of 24 × 80 cells and starts this command in it.
    pub fn open(command: &Command) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a PTY");
        grantpt(&controller).and_then(|()| unlockpt(&controller)).expect("a PTY can be unlocked");
        let name = ptsname(&controller, Vec::new()).expect("a PTY has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = open(name.as_c_str(), flags, Mode::empty()).expect("the other side opens");
        rustix::io::fcntl_setfd(&controller, rustix::io::FdFlags::CLOEXEC).expect("a descriptor");
        // `setsid --ctty` makes the PTY the program's controlling terminal, as an emulator does.
        let mut wrapped = Command::new("setsid");
        let inner = command.as_std();
        wrapped.arg("--ctty").arg(inner.get_program()).args(inner.get_args()).env_clear().kill_on_drop(true);
        wrapped.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        if let Some(dir) = inner.get_current_dir() {
            wrapped.current_dir(dir);
        }
        let side = || Stdio::from(terminal.try_clone().expect("a descriptor"));
        let child = wrapped.stdin(side()).stdout(side()).stderr(side()).spawn().expect("setsid starts");
        let mut window = Self { controller: File::from(controller), terminal, output: Arc::default(), child };
        window.resize(24, 80);
        window.watch();
        window
    }

    fn watch(&mut self) {
        let (mut controller, output) =
            (self.controller.try_clone().expect("a descriptor"), self.output.clone());
        // Dropping the window closes the other side. Reading then fails, and the thread ends.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = controller.read(&mut buffer) {
                output.lock().expect("no reader panics").extend_from_slice(&buffer[..read]);
            }
        });
    }

    pub fn type_text(&mut self, text: &str) {
        self.controller.write_all(text.as_bytes()).expect("the window takes keystrokes");
    }

    /// Sets the size of the window.
    pub fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.controller.as_fd(), size).expect("a window has a size");
    }

    /// Returns the terminal modes. `podling attach` sets raw mode while it runs, and restores the
    /// modes afterwards.
    pub fn modes(&self) -> Termios {
        tcgetattr(&self.terminal).expect("a window has modes")
    }

    /// Returns all output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("no reader panics")).into_owned()
    }

    /// Waits until the output contains `text`.
    pub async fn wait_for_text(&self, text: &str) {
        self.wait_for_any_text(&[text]).await;
    }

    /// Waits until the output contains the shell prompt of a user (`$ `) or of root (`# `).
    pub async fn wait_for_prompt(&self) {
        self.wait_for_any_text(&["$ ", "# "]).await;
    }

    async fn wait_for_any_text(&self, texts: &[&str]) {
        let mut polls = 0_u32;
        wait_for(&format!("the window shows one of {texts:?}"), async || {
            polls += 1;
            if polls.is_multiple_of(500) {
                eprintln!("still waiting for one of {texts:?}; the window shows {:?}", self.output());
            }
            let shown = self.output();
            texts.iter().any(|text| shown.contains(text)).then_some(())
        })
        .await;
    }

    /// Waits until the program has ended and all its output is read. Returns its exit code.
    pub async fn wait_exit(&mut self) -> Option<i32> {
        let status =
            wait_for("the program in the window ends", async || self.child.try_wait().ok().flatten()).await;
        // The mark follows the program's last output, so once it is read, all output is read.
        rustix::io::write(&self.terminal, END_MARK.as_bytes()).expect("the window takes output");
        self.wait_for_text(END_MARK).await;
        let mut output = self.output.lock().expect("no reader panics");
        let length = output.len().saturating_sub(END_MARK.len());
        output.truncate(length);
        status.code()
    }
}
