//! A small EC2 client: signs as `AWS4-HMAC-SHA256`, sends a form, hands back status and XML.

use std::net::SocketAddr;

use bytes::Bytes;
use chrono::Utc;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use vbs::sigv4::{Outgoing, sign};

/// An account's access to a gateway.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub access_key_id: String,
    pub secret: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Client {
    /// Calls an action with these parameters.
    pub async fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Answer {
        send(self.address, self.signed(action, parameters)).await
    }

    /// The request that calls an action.
    pub fn signed(&self, action: &str, parameters: &[(&str, &str)]) -> Request<Full<Bytes>> {
        let mut form = form_urlencoded(&[("Action", action), ("Version", "2016-11-15")]);
        if !parameters.is_empty() {
            form.push('&');
            form.push_str(&form_urlencoded(parameters));
        }
        let host = self.address.to_string();
        let signed = sign(
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
        let mut request = Request::post("/")
            .header("host", &host)
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        for (name, value) in signed {
            request = request.header(name, value);
        }
        request.body(Full::new(Bytes::from(form))).unwrap()
    }

    /// Calls an action that must succeed.
    pub async fn ok(&self, action: &str, parameters: &[(&str, &str)]) -> Answer {
        let answer = self.call(action, parameters).await;
        assert_eq!(answer.status, 200, "{action} {parameters:?}: {}", answer.body);
        answer
    }

    /// Calls an action that must fail, and hands back code and message.
    pub async fn fails(&self, action: &str, parameters: &[(&str, &str)]) -> (String, String) {
        let answer = self.call(action, parameters).await;
        assert_ne!(answer.status, 200, "{action} {parameters:?}: {}", answer.body);
        (answer.text("Code"), answer.text("Message"))
    }
}

impl Answer {
    /// The text of the first element of this name.
    pub fn text(&self, element: &str) -> String {
        self.find(element).unwrap_or_else(|| panic!("no <{element}> in {}", self.body))
    }

    /// The text of the first element of this name, if there is one.
    pub fn find(&self, element: &str) -> Option<String> {
        self.all(element).into_iter().next()
    }

    /// The texts of all elements of this name that have no children.
    pub fn all(&self, element: &str) -> Vec<String> {
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let parts = self.body.split(&open).skip(1);
        parts.filter_map(|rest| rest.split_once(&close)).map(|(text, _)| unescape(text)).collect()
    }
}

fn unescape(text: &str) -> String {
    quick_xml::escape::unescape(text).unwrap().into_owned()
}

/// Sends one request over a connection of its own.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, body: String::from_utf8(body.to_vec()).unwrap() }
}

fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    let encode =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}
