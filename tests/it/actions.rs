//! Every action of the dispatch table is documented, tried out by a client that knows EC2's model, crossed between two accounts, and
//! closed to who has no key: a new one that is not fails here.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use vbs::ec2_api::actions::ACTIONS;

use crate::support::client::send;
use crate::support::cloud::Cloud;

const DOCUMENTATION: &str = include_str!("../../docs/api.md");
const CONFORMANCE: &str = include_str!("../../compat-tests/test_conformance.py");
const TWO_ACCOUNTS: &str = include_str!("../../compat-tests/test_two_accounts.py");

/// `DescribeVolumes` as boto3 calls it: `describe_volumes`.
fn in_boto3(action: &str) -> String {
    let mut name = String::new();
    let mut before = 'A';
    for c in action.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            name.push('_');
        }
        name.extend(c.to_lowercase());
        before = c;
    }
    name
}

#[test]
fn every_action_is_in_the_documentation_the_conformance_test_and_the_matrix_of_two_accounts() {
    let (_, table) = DOCUMENTATION.split_once("## Actions").unwrap();
    let rows: Vec<&str> = table.lines().take_while(|line| !line.starts_with("## ")).collect();
    let documented = |name: &str| {
        let firsts = rows.iter().filter_map(|row| row.strip_prefix("| ")?.split(" |").next());
        firsts.flat_map(|first| first.split([',', ' '])).any(|word| word == name)
    };
    let (_, matrix) = TWO_ACCOUNTS.split_once("MATRIX = {").unwrap();
    let (matrix, _) = matrix.split_once("\n}").unwrap();
    for action in ACTIONS {
        let name = action.name;
        assert!(documented(name), "{name} has no row in docs/api.md");
        let call = format!(".{}(", in_boto3(name));
        assert!(CONFORMANCE.contains(&call), "{name} is not done in compat-tests/test_conformance.py");
        assert!(matrix.contains(&format!("\"{name}\":")), "{name} is not in compat-tests/test_two_accounts.py");
    }
    let crossed = matrix.lines().filter(|line| line.trim_start().starts_with('"')).count();
    assert_eq!(crossed, ACTIONS.len(), "the matrix has actions that there are not");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_is_closed_to_who_has_no_key() {
    let cloud = Cloud::start().await;
    let mut forger = cloud.client.clone();
    forger.secret.push('x');
    for action in ACTIONS {
        let name = action.name;
        for parameters in [&[][..], &[("DryRun", "true")], &[("VolumeId", "vol-0123456789abcdef0")]] {
            let answer = forger.call(name, parameters).await;
            let is_refused = matches!(
                (answer.status, answer.text("Code").as_str()),
                (401, "AuthFailure") | (403, "InvalidClientTokenId")
            );
            assert!(is_refused, "{name} {parameters:?}: {}", answer.body);
        }
        let form = Bytes::from(format!("Action={name}&Version=2016-11-15"));
        let unsigned = Request::post("/").header("host", "localhost").body(Full::new(form)).unwrap();
        let answer = send(cloud.client.address, unsigned).await;
        let code = answer.text("Code");
        assert!(matches!(code.as_str(), "MissingParameter" | "MissingAuthenticationToken"), "{name}: {}", answer.body);
    }
    assert_eq!(cloud.client.ok("DescribeVolumes", &[]).await.find("volumeId"), None, "nothing was made");
}
