//! A person's own terminal window: a PTY with a program in it, as `ssh` or `podling attach` would have.

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

/// A window with a program in it.
#[derive(Debug)]
pub struct TerminalWindow {
    ours: File,
    theirs: OwnedFd,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

/// Written into a window when its program has ended, and taken away again.
const ENDED: &str = "[the program has ended]";

impl TerminalWindow {
    /// Opens a window of 24 × 80 with this command in it.
    pub fn open(command: &Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a PTY");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("a PTY can be unlocked");
        let name = ptsname(&ours, Vec::new()).expect("a PTY has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = open(name.as_c_str(), flags, Mode::empty()).expect("the other side opens");
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).expect("a descriptor");
        // `setsid --ctty` makes the PTY the program's controlling terminal, as a terminal emulator does.
        let mut wrapped = Command::new("setsid");
        let inner = command.as_std();
        wrapped.arg("--ctty").arg(inner.get_program()).args(inner.get_args()).env_clear().kill_on_drop(true);
        wrapped.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        if let Some(folder) = inner.get_current_dir() {
            wrapped.current_dir(folder);
        }
        let side = || Stdio::from(theirs.try_clone().expect("a descriptor"));
        let child = wrapped.stdin(side()).stdout(side()).stderr(side()).spawn().expect("setsid starts");
        let mut window = Self { ours: File::from(ours), theirs, seen: Arc::default(), child };
        window.resize(24, 80);
        window.watch();
        window
    }

    fn watch(&mut self) {
        let (mut ours, seen) = (self.ours.try_clone().expect("a descriptor"), self.seen.clone());
        // Ends when the window is dropped: the other side is then closed and reading fails.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = ours.read(&mut buffer) {
                seen.lock().expect("no reader panics").extend_from_slice(&buffer[..read]);
            }
        });
    }

    /// Types.
    pub fn type_text(&mut self, text: &str) {
        self.ours.write_all(text.as_bytes()).expect("the window takes keystrokes");
    }

    /// Drags the window's corner.
    pub fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.ours.as_fd(), size).expect("a window has a size");
    }

    /// How the line is set: raw while a program is attached, as before when it has left.
    pub fn modes(&self) -> Termios {
        tcgetattr(&self.theirs).expect("a window has modes")
    }

    /// Everything that was shown so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no reader panics")).into_owned()
    }

    /// Waits until this was shown.
    pub async fn wait_for_text(&self, text: &str) {
        self.wait_for_any_text(&[text]).await;
    }

    /// Waits until a shell asks for a command, a user's or root's.
    pub async fn wait_for_prompt(&self) {
        self.wait_for_any_text(&["$ ", "# "]).await;
    }

    async fn wait_for_any_text(&self, texts: &[&str]) {
        let mut looks = 0_u32;
        wait_for(&format!("the window shows {texts:?}"), async || {
            looks += 1;
            if looks.is_multiple_of(500) {
                eprintln!("still waiting for {texts:?}; the window shows {:?}", self.output());
            }
            let shown = self.output();
            texts.iter().any(|text| shown.contains(text)).then_some(())
        })
        .await;
    }

    /// Waits for the program's end, and until all that it wrote is shown; its exit code.
    pub async fn wait_exit(&mut self) -> Option<i32> {
        let status =
            wait_for("the program in the window ends", async || self.child.try_wait().ok().flatten()).await;
        // Written behind its last words: what is shown before this is all there will be.
        rustix::io::write(&self.theirs, ENDED.as_bytes()).expect("the window takes output");
        self.wait_for_text(ENDED).await;
        let mut seen = self.seen.lock().expect("no reader panics");
        let kept = seen.len().saturating_sub(ENDED.len());
        seen.truncate(kept);
        status.code()
    }
}
