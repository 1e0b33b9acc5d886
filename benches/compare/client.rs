//! Signed EC2 requests as bytes on the wire, and answers to them.

use std::fmt::Write as _;
use std::net::SocketAddr;

use chrono::Utc;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use vbs::sigv4::{Outgoing, sign};

use crate::Result;
use crate::load::{Answer, read_answer};

/// An access key at an endpoint.
#[derive(Debug, Clone)]
pub struct Client {
    /// Where.
    pub address: SocketAddr,
    /// The access key id.
    pub access_key_id: String,
    /// The secret.
    pub secret: String,
}

impl Client {
    /// A request, signed now: good for a quarter of an hour.
    pub fn request(&self, action: &str, parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut form = format!("Action={action}&Version=2016-11-15");
        for (name, value) in parameters {
            let _ = write!(form, "&{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
        let host = self.address.to_string();
        let headers = sign(
            &Outgoing {
                method: "POST",
                path: "/",
                query: "",
                host: &host,
                body: form.as_bytes(),
                access_key_id: &self.access_key_id,
                secret: &self.secret,
                region: "us-east-1",
                service: "ec2",
            },
            Utc::now(),
        );
        let mut request = format!(
            "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
            form.len()
        );
        for (name, value) in headers {
            let _ = write!(request, "{name}: {value}\r\n");
        }
        (request + "\r\n" + &form).into_bytes()
    }

    /// Calls an action over a connection of its own; anything but 200 is an error.
    pub async fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let body = send(self.address, &self.request(action, parameters)).await?;
        match body {
            Answer { status: 200, body, .. } => Ok(String::from_utf8(body)?),
            Answer { status, body, .. } => {
                Err(format!("{action}: {status}: {}", String::from_utf8_lossy(&body)).into())
            }
        }
    }
}

/// Sends one request over a connection of its own.
pub async fn send(address: SocketAddr, request: &[u8]) -> Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    read_answer(&mut stream, &mut Vec::new()).await
}

/// The text of the first element of this name.
pub fn element<'a>(xml: &'a str, name: &str) -> Result<&'a str> {
    let found = xml.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    found.map(|(text, _)| text).ok_or_else(|| format!("no <{name}> in {xml}").into())
}
