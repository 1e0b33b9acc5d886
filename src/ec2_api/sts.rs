//! `GetCallerIdentity` of STS, on the same port: the call by which many tools try out their credentials first.
//!
//! STS has an envelope of its own, also for refusals.

use super::error::{ApiError, ApiResult};
use super::query::Params;
use super::{Call, xml};

/// The one action.
pub const ACTION: &str = "GetCallerIdentity";
const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Tells the caller who they are. Every key of an account speaks for the whole account, as its root user does.
pub fn get_caller_identity(call: &Call, params: Params) -> ApiResult<String> {
    params.finish()?;
    let account = &call.caller.account_id;
    Ok(format!(
        "{}<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult><Arn>arn:aws:iam::{account}:root</Arn>\
         <UserId>{account}</UserId><Account>{account}</Account></GetCallerIdentityResult><ResponseMetadata>\
         <RequestId>{}</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
        xml::DECLARATION,
        xml::escape(&call.request_id),
    ))
}

/// A refusal in STS's words: the codes for credentials differ from EC2's.
pub fn render(error: &ApiError, request_id: &str) -> (u16, String) {
    let (status, code, message) = match (error.code, error.status) {
        ("AuthFailure", _) => (403, "InvalidClientTokenId", "The security token included in the request is invalid."),
        ("MissingParameter", _) => (403, "MissingAuthenticationToken", "Request is missing Authentication Token"),
        ("RequestExpired", _) => (403, "SignatureDoesNotMatch", error.message.as_str()),
        (code, status) => (status, code, error.message.as_str()),
    };
    let fault = if status < 500 { "Sender" } else { "Receiver" };
    let body = format!(
        "{}<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>{fault}</Type><Code>{code}</Code><Message>{}</Message></Error>\
         <RequestId>{}</RequestId></ErrorResponse>",
        xml::DECLARATION,
        xml::escape(message),
        xml::escape(request_id),
    );
    (status, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2_api::faults;

    #[test]
    fn a_refusal_speaks_the_dialect_of_sts() {
        let (status, body) = render(&faults::auth_failure(), "r-1");
        assert_eq!(status, 403);
        assert!(body.contains("<Code>InvalidClientTokenId</Code>") && body.contains("<RequestId>r-1</RequestId>"));
    }
}
