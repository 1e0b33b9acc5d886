//! One kind of error for the whole EC2 front: what the client is told, and what only the log is told.
//!
//! Clients branch on codes and even on texts, so both are contract; the texts of the single faults are in
//! [`super::faults`]. Every refusal, also one made by the HTTP server before any request was understood, is rendered
//! by the one function here.

use std::fmt::Write as _;

use crate::db;

use super::xml;

/// A request's failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The EC2 error code, such as `InvalidVolume.NotFound`.
    pub code: &'static str,
    /// The HTTP status it travels with.
    pub status: u16,
    /// The text for the client.
    pub message: String,
    /// The text for the log, when there is more to say than the client may know.
    pub inside: Option<String>,
}

/// What a handler answers: the body of a success, or a failure.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// A client's fault: 400, or the other status that EC2 gives this code.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, status: status_of(code), message: message.into(), inside: None }
    }

    /// A fault of ours. The client learns nothing but that there was one.
    pub fn internal(inside: impl std::fmt::Display) -> Self {
        Self { inside: Some(inside.to_string()), ..Self::new("InternalError", "An internal error has occurred") }
    }

    /// More was asked than there is leave or time for.
    pub fn too_much() -> Self {
        Self::new("RequestLimitExceeded", "Request limit exceeded.")
    }

    /// A fault of ours that passes: the database does not answer.
    pub fn unavailable(inside: impl std::fmt::Display) -> Self {
        Self {
            inside: Some(inside.to_string()),
            ..Self::new("Unavailable", "The service is unavailable. Please try again shortly.")
        }
    }

    /// The error document of EC2: no namespace, and `RequestID` in capitals, unlike a success.
    pub fn render(&self, request_id: &str) -> String {
        let mut out = String::with_capacity(256 + self.message.len());
        let _ = write!(
            out,
            "{}<Response><Errors><Error><Code>{}</Code><Message>{}</Message></Error></Errors><RequestID>{}</RequestID></Response>",
            xml::DECLARATION,
            self.code,
            xml::escape(&self.message),
            xml::escape(request_id),
        );
        out
    }
}

/// The statuses of codes that are not a plain 400.
fn status_of(code: &str) -> u16 {
    match code {
        "AuthFailure" => 401,
        "UnauthorizedOperation" | "SignatureDoesNotMatch" | "OptInRequired" => 403,
        "DryRunOperation" => 412,
        "InternalError" => 500,
        "RequestLimitExceeded" | "Unavailable" | "InsufficientVolumeCapacity" => 503,
        _ => 400,
    }
}

impl From<diesel::result::Error> for ApiError {
    fn from(error: diesel::result::Error) -> Self {
        match &error {
            diesel::result::Error::DatabaseError(diesel::result::DatabaseErrorKind::ClosedConnection, _)
            | diesel::result::Error::BrokenTransactionManager => Self::unavailable(error),
            _ => Self::internal(error),
        }
    }
}

impl From<db::Error> for ApiError {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::Query(error) => error.into(),
            db::Error::Connection(_) => Self::unavailable(error),
            // SDKs come back later for this one, and later still the next time.
            db::Error::Busy => Self { inside: Some(error.to_string()), ..Self::too_much() },
            db::Error::Migration(_) => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_rendered_in_ec2s_document_with_its_text_escaped() {
        let error = ApiError::new("InvalidParameterValue", "Value (<a&b>) is invalid");
        assert_eq!(
            error.render("r-1"),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>InvalidParameterValue</Code>\
             <Message>Value (&lt;a&amp;b&gt;) is invalid</Message></Error></Errors><RequestID>r-1</RequestID></Response>"
        );
    }

    #[test]
    fn the_inside_text_never_reaches_the_client() {
        let error = ApiError::internal("password is hunter2");
        assert!(!error.render("r").contains("hunter2"));
        assert_eq!(error.status, 500);
    }

    #[test]
    fn codes_travel_with_the_statuses_ec2_gives_them() {
        for (code, status) in
            [("InvalidVolume.NotFound", 400), ("AuthFailure", 401), ("DryRunOperation", 412), ("Unavailable", 503)]
        {
            assert_eq!(ApiError::new(code, "").status, status, "{code}");
        }
    }
}
