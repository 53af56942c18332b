//! The binary under test, with nothing of this shell's environment in it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

/// `quire ARGS`, not started yet.
pub fn quire(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quire"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUIRE_") || name == "COLUMNS" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end.
pub fn run(args: &[&str]) -> Output {
    quire(args).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A server that is killed when the test ends.
pub struct Server {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// What it said until it was ready.
    pub said: Vec<String>,
    pub url: String,
    /// `host:port` of gRPC, if it has any.
    pub grpc: Option<String>,
}

impl Server {
    /// Starts `quire ARGS --port 0` and reads until the ready line.
    pub fn start(args: &[&str]) -> Self {
        Self::start_loading(args).until("ready: ")
    }

    /// The same for a router, which has nothing to load.
    pub fn start_router(args: &[&str]) -> Self {
        Self::spawn(args).until("ready: ")
    }

    /// Starts `quire ARGS --port 0` and reads until the port is open.
    pub fn start_loading(args: &[&str]) -> Self {
        Self::spawn(args).until("loading: ")
    }

    fn spawn(args: &[&str]) -> Self {
        let mut command = quire(&[args, &["--port", "0"]].concat());
        // One heap that /proc names, so that whoever looks into memory can tell it from pools of pages.
        let mut child = command.env("MALLOC_ARENA_MAX", "1").stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines, said: Vec::new(), url: String::new(), grpc: None }
    }

    /// Reads until a line that begins so.
    fn until(mut self, start: &str) -> Self {
        loop {
            let line = self.line();
            let url = line.split_whitespace().find(|word| word.starts_with("http://"));
            if let (true, Some(url)) = (line.starts_with(start), url) {
                self.url = url.to_owned();
                let grpc = line.split_whitespace().find_map(|word| word.strip_prefix("grpc://"));
                self.grpc = grpc.map(str::to_owned);
                return self;
            }
            self.said.push(line);
        }
    }

    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// The next line it says.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the server ended after {:?}", self.said);
        line.trim_end().to_owned()
    }

    /// Waits for the end; exit code and what was said since ready.
    pub fn wait(mut self) -> (i32, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), rest)
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        exchange(self.address(), &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        exchange(self.address(), &request(path, body))
    }

    pub fn get_as(&self, key: &str, path: &str) -> (u16, Value) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        exchange(self.address(), &keyed(key, &request))
    }

    pub fn post_as(&self, key: &str, path: &str, body: &Value) -> (u16, Value) {
        exchange(self.address(), &keyed(key, &request(path, body)))
    }

    /// Sends a request whose answer goes unread; returns once the answer has begun.
    pub fn open_as(&self, key: &str, path: &str, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.write_all(keyed(key, &request(path, body)).as_bytes()).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn request(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The same request with a bearer key.
fn keyed(key: &str, request: &str) -> String {
    request.replacen("\r\n", &format!("\r\nauthorization: Bearer {key}\r\n"), 1)
}

fn exchange(address: &str, request: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}
