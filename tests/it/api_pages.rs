//! Pages of many volumes: what they cost, and that nothing is lost between them whatever a filter looks at.

use std::collections::BTreeSet;
use std::sync::Mutex;

use diesel::connection::{Instrumentation, InstrumentationEvent, set_default_instrumentation};
use diesel_async::SimpleAsyncConnection;

use crate::support::client::{Answer, Client};
use crate::support::cloud::{ACCOUNT, Cloud};
use crate::support::postgres;

const VOLUMES: usize = 1_100;

/// Every odd volume is attached, all have a tag with their number, and every tenth one is an owner's.
const FILL: &str = "\
    INSERT INTO volumes (id, account_id, zone, node, size_gib, volume_type, state, created_at) \
        SELECT 'vol-' || lpad(to_hex(n), 17, '0'), $account, 'us-east-1a', 'storage-a', 1 + n % 100, 'gp2', \
        CASE n % 2 WHEN 1 THEN 'in-use' ELSE 'available' END, \
        timestamptz '2026-01-31 12:00:00Z' + n / 2 * interval '500 milliseconds' FROM generate_series(1, 1100) n; \
    INSERT INTO attachments (id, account_id, volume_id, instance_id, device, device_key, state, iqn, lun, chap_user, \
        sealed_chap_secret, initiator_iqn, attached_at) \
        SELECT gen_random_uuid(), $account, 'vol-' || lpad(to_hex(n), 17, '0'), (SELECT id FROM instances ORDER BY zone, machine LIMIT 1), \
        '/dev/' || n, n::text, 'attached', n::text, 1, '', '', '', timestamptz '2026-02-01 00:00:00.789Z' \
        FROM generate_series(1, 1100, 2) n; \
    INSERT INTO tags (resource_id, key, value, account_id, resource_type) \
        SELECT 'vol-' || lpad(to_hex(n), 17, '0'), k, n::text, $account, 'volume' FROM generate_series(1, 1100) n, \
        unnest(ARRAY['number', CASE n % 10 WHEN 0 THEN 'owner' ELSE 'other' END]) k; \
    INSERT INTO tags (resource_id, key, value, account_id, resource_type) \
        SELECT 'snap-' || lpad(to_hex(n), 17, '0'), 'number', '7', $account, 'snapshot' FROM generate_series(1, 20) n";

async fn fill(cloud: &Cloud) {
    let fill = FILL.replace("$account", &format!("'{ACCOUNT}'"));
    cloud.pool.get().await.unwrap().batch_execute(&fill).await.unwrap();
}

/// The statements of all connections of this process: the database's name, and the text.
static STATEMENTS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

struct Counter(String);

impl Instrumentation for Counter {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartEstablishConnection { url, .. } => url.clone_into(&mut self.0),
            InstrumentationEvent::StartQuery { query, .. } => {
                STATEMENTS.lock().unwrap().push((self.0.clone(), query.to_string()));
            }
            _ => {}
        }
    }
}

/// Calls, and tells how many statements that took on what is described. The workers read other tables while they rest.
async fn counted(url: &str, client: &Client, action: &str, parameters: &[(&str, &str)]) -> (Answer, usize) {
    STATEMENTS.lock().unwrap().clear();
    let answer = client.ok(action, parameters).await;
    let is_one = |(database, text): &&(String, String)| {
        database == url && text.contains(ACCOUNT) && ["volumes", "tags", "attachments"].iter().any(|t| text.contains(t))
    };
    (answer, STATEMENTS.lock().unwrap().iter().filter(is_one).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_takes_one_statement_however_long_it_is() {
    set_default_instrumentation(|| Some(Box::new(Counter(String::new())))).unwrap();
    let url = postgres::database().await;
    let cloud = Cloud::join(&url, &vbs::delegate::sim::SimCloud::new(), "").await;
    fill(&cloud).await;
    for action in ["DescribeVolumes", "DescribeVolumeStatus", "DescribeTags"] {
        for (size, shown) in [("5", 5), ("250", 250), ("1000", 1_000), ("9999", 1_000)] {
            let (answer, statements) = counted(&url, &cloud.client, action, &[("MaxResults", size)]).await;
            assert_eq!((items(&answer, action), statements), (shown, 1), "{action} by {size}");
        }
    }
    let ids: Vec<String> = (1..=500).map(|n| format!("vol-{n:017x}")).collect();
    let names: Vec<String> = (1..=500).map(|n| format!("VolumeId.{n}")).collect();
    let parameters: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(ids.iter().map(String::as_str)).collect();
    let (answer, statements) = counted(&url, &cloud.client, "DescribeVolumes", &parameters).await;
    assert_eq!((items(&answer, "DescribeVolumes"), statements), (500, 1), "ids");
}

/// How many volumes or tags are shown.
fn items(answer: &Answer, action: &str) -> usize {
    let sign = match action {
        "DescribeVolumes" => "<operator>",
        "DescribeVolumeStatus" => "<volumeStatus>",
        _ => "<resourceId>",
    };
    answer.body.matches(sign).count()
}

/// The numbers of the volumes on all pages of a describe with these filters.
async fn walk(client: &Client, filters: &[(&str, &[&str])]) -> Vec<usize> {
    let mut fixed = vec![("MaxResults".to_owned(), "60".to_owned())];
    for (at, (name, values)) in filters.iter().enumerate() {
        fixed.push((format!("Filter.{}.Name", at + 1), (*name).to_owned()));
        for (number, value) in values.iter().enumerate() {
            fixed.push((format!("Filter.{}.Value.{}", at + 1, number + 1), (*value).to_owned()));
        }
    }
    let (mut found, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut parameters: Vec<(&str, &str)> = fixed.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        parameters.extend(token.as_deref().map(|token| ("NextToken", token)));
        let answer = client.ok("DescribeVolumes", &parameters).await;
        for arn in answer.all("volumeArn") {
            found.push(usize::from_str_radix(arn.rsplit_once("vol-").unwrap().1, 16).unwrap());
        }
        token = answer.find("nextToken");
        if token.is_none() {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_filter_have_all_that_it_selects_once_and_in_order() {
    type Filters<'a> = &'a [(&'a str, &'a [&'a str])];
    type Expected = fn(usize) -> bool;
    let cloud = Cloud::start().await;
    fill(&cloud).await;
    let instance = cloud.instances().await.remove(0);
    let cases: [(Filters, Expected); 25] = [
        (&[("attachment.instance-id", &[&instance])], |n| n % 2 == 1),
        (&[("attachment.device", &["/dev/7", "/dev/8", "/dev/9?"])], |n| n == 7 || n > 90 && n < 100 && n % 2 == 1),
        (&[("attachment.attach-time", &["2026-02-01T00:00:00.000Z"])], |n| n % 2 == 1),
        (&[("attachment.attach-time", &["2026-02-01T00:00:00.789Z"])], |_| false),
        (&[("attachment.attach-time", &["2026-02-01T00:00:00.789Z", "2026-02*"])], |n| n % 2 == 1),
        (&[("attachment.attach-time", &["*T00:00:00.000?"])], |n| n % 2 == 1),
        (&[("attachment.attach-time", &["*1", "*.789*", "* *"])], |_| false),
        (&[("attachment.status", &["attached"]), ("size", &["2"])], |n| n % 100 == 1),
        (&[("create-time", &["2026-01-31T12:00:00.500Z", "2026-01-31T12:00:01.000Z"])], |n| (2..6).contains(&n)),
        (&[("create-time", &["2026-01-31T12:00:00.5Z", "nonsense"])], |_| false),
        (&[("create-time", &["2026-01-31T12:00:00.*"])], |n| n < 4),
        (&[("create-time", &["*.500Z", "nonsense"])], |n| n / 2 % 2 == 1),
        (&[("create-time", &["2026-01-31 *", "*001*", "*?Z*Z"])], |_| false),
        (&[("tag:number", &["7", "1100", "5000"])], |n| n == 7 || n == 1100),
        (&[("tag:number", &["7", "10*"])], |n| n == 7 || n.to_string().starts_with("10")),
        (&[("tag:number", &["7", "9"]), ("tag:other", &["*"])], |n| n == 7 || n == 9),
        (&[("status", &["available"]), ("tag:number", &["7", "8"])], |n| n == 8),
        (&[("tag:number", &["8"]), ("status", &["available", "in-use"])], |n| n == 8),
        (&[("tag-key", &["owner"])], |n| n % 10 == 0),
        (&[("tag-key", &["own*", "nobody's"])], |n| n % 10 == 0),
        (&[("tag-key", &["o*"])], |_| true),
        (&[("tag-key", &["*"])], |_| true),
        (&[("tag-key", &["n", "*x"])], |_| false),
        (&[("tag-value", &["70", "110"])], |n| n == 70 || n == 110),
        (&[("tag-value", &["70", "11?0"])], |n| n == 70 || n == 1100),
    ];
    for (filters, expected) in cases {
        let expected: Vec<usize> = (1..=VOLUMES).filter(|n| expected(*n)).collect();
        assert_eq!(walk(&cloud.client, filters).await, expected, "{filters:?}");
    }
    assert_eq!(walk(&cloud.client, &[("tag:number", &[])]).await, Vec::<usize>::new());
    let stranger = cloud.another_account("210987654321").await;
    for filter in ["tag-key", "tag-value", "tag:number", "attachment.device", "volume-id"] {
        assert_eq!(walk(&stranger, &[(filter, &["*"])]).await, Vec::<usize>::new(), "{filter}");
    }
    let whole: BTreeSet<usize> = walk(&cloud.client, &[]).await.into_iter().collect();
    assert_eq!(whole.len(), VOLUMES);
}
