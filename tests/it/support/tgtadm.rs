//! `tgtadm` on a bad day: hands what it is told on to the real one, and once does otherwise, as the file `plan` beside it says:
//! `SKIP KIND`, so many commands later. What it was asked is noted in `calls`, a line each.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// Where Debian has it.
const REAL: &str = "/usr/sbin/tgtadm";
/// Its status for every error.
const REFUSED: u8 = 22;
/// Longer than any driver waits.
const FOR_EVER: Duration = Duration::from_secs(120);
/// How much later a command has its effect that comes late.
const LATE: Duration = Duration::from_millis(400);

#[expect(clippy::zombie_processes, reason = "what comes late outlives who began it")]
fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    let own = args.remove(0);
    if args.first().is_some_and(|first| first == "late") {
        std::thread::sleep(LATE);
        return done(&real(&args[1..]));
    }
    let dir = Path::new(&own).parent().expect("it is started by its path");
    note(dir, &args);
    match plan(dir).as_deref() {
        None => done(&real(&args)),
        Some("refuses") => refuse("tgtadm: failed to send request hdr to tgt daemon, Broken pipe"),
        Some("fails though done") => {
            real(&args);
            refuse("tgtadm: something went wrong")
        }
        Some("lies") => ExitCode::SUCCESS,
        Some("babbles") => {
            let mut out = real(&args).stdout;
            out.truncate(out.len() / 2);
            out.extend(b"\xff\xfe\0Target 9: iqn.x\n    LUN: 1\n\x1b[2J");
            out.extend(b"x".repeat(1 << 16));
            std::io::stdout().write_all(&out).expect("the driver reads");
            ExitCode::SUCCESS
        }
        Some("breaks off") => {
            let out = real(&args).stdout;
            std::io::stdout().write_all(&out[..out.len() / 3]).expect("the driver reads");
            ExitCode::SUCCESS
        }
        Some("blabs") => refuse(&format!("tgtadm: cannot do {args:?}")),
        Some("is killed before") => die(),
        Some("is killed after") => {
            real(&args);
            die()
        }
        Some("hangs") => {
            std::thread::sleep(FOR_EVER);
            ExitCode::SUCCESS
        }
        Some("hangs though done") => {
            real(&args);
            std::thread::sleep(FOR_EVER);
            ExitCode::SUCCESS
        }
        Some("comes late") => {
            let mut later = Command::new(&own);
            later.arg("late").args(&args).process_group(0);
            later.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts itself");
            refuse("tgtadm: no answer")
        }
        Some(other) => panic!("no such day: {other}"),
    }
}

/// What goes wrong now, if anything.
fn plan(dir: &Path) -> Option<String> {
    let path = dir.join("plan");
    let text = fs::read_to_string(&path).ok()?;
    let (skip, kind) = text.split_once(' ').expect("SKIP KIND");
    match skip.parse::<u32>().expect("a number") {
        0 => {
            fs::remove_file(path).expect("it was there");
            Some(kind.to_owned())
        }
        skip => {
            fs::write(path, format!("{} {kind}", skip - 1)).expect("it is ours");
            None
        }
    }
}

fn note(dir: &Path, args: &[String]) {
    let of = |name: &str| args.iter().skip_while(|arg| *arg != name).nth(1).cloned().unwrap_or_default();
    let mut calls = fs::File::options().create(true).append(true).open(dir.join("calls")).expect("it is ours");
    writeln!(calls, "{} {}", of("--mode"), of("--op")).expect("there is room");
}

fn real(args: &[String]) -> Output {
    Command::new(REAL).args(args).output().expect("tgtadm is in the Debian package tgt")
}

fn done(output: &Output) -> ExitCode {
    std::io::stdout().write_all(&output.stdout).expect("the driver reads");
    std::io::stderr().write_all(&output.stderr).expect("the driver reads");
    ExitCode::from(output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(REFUSED))
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(REFUSED)
}

fn die() -> ExitCode {
    kill_process(getpid(), Signal::KILL).expect("it is us");
    unreachable!("nobody survives that")
}
