// The AWS SDK for Go, of Debian's package: the actions of vbs that it knows, with waiters and paginators.
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/awserr"
	"github.com/aws/aws-sdk-go/aws/request"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/ec2"
	"github.com/aws/aws-sdk-go/service/sts"
)

func must[T any](answer T, err error) T {
	if err != nil {
		log.Panic(err)
	}
	return answer
}

func check(holds bool, what ...any) {
	if !holds {
		log.Panic(append([]any{"not so: "}, what...)...)
	}
}

func refused(code string, err error) {
	var fault awserr.Error
	check(errors.As(err, &fault) && fault.Code() == code, "wanted ", code, ", got ", err)
}

func until(what string, condition func() bool) {
	for end := time.Now().Add(time.Minute); !condition(); time.Sleep(100 * time.Millisecond) {
		check(time.Now().Before(end), "waited in vain for ", what)
	}
}

func tags(kind string) []*ec2.TagSpecification {
	named := []*ec2.Tag{{Key: aws.String("Name"), Value: aws.String("by Go")}}
	return []*ec2.TagSpecification{{ResourceType: &kind, Tags: named}}
}

func filter(name string, values ...string) []*ec2.Filter {
	return []*ec2.Filter{{Name: &name, Values: aws.StringSlice(values)}}
}

func main() {
	if len(os.Args) > 1 {
		fmt.Println(aws.SDKVersion)
		return
	}
	sess := must(session.NewSession(&aws.Config{Endpoint: aws.String(os.Getenv("AWS_ENDPOINT_URL")), Region: aws.String("us-east-1")}))
	client := ec2.New(sess)
	ctx := aws.BackgroundContext()
	soon := []request.WaiterOption{request.WithWaiterDelay(request.ConstantWaiterDelay(100 * time.Millisecond)), request.WithWaiterMaxAttempts(600)}
	instance := aws.String(strings.Split(os.Getenv("VBS_INSTANCES"), ",")[0])
	zone := aws.String("us-east-1a")
	check(len(*must(sts.New(sess).GetCallerIdentity(&sts.GetCallerIdentityInput{})).Account) == 12, "an account")

	// Volumes. A ClientToken goes along by itself.
	made := must(client.CreateVolume(&ec2.CreateVolumeInput{AvailabilityZone: zone, Size: aws.Int64(10), VolumeType: aws.String("gp3"), TagSpecifications: tags("volume")}))
	volume := made.VolumeId
	one := &ec2.DescribeVolumesInput{VolumeIds: []*string{volume}}
	check(*made.Iops == 3000 && !*made.Encrypted && made.CreateTime != nil, "the fields of ", made)
	must(0, client.WaitUntilVolumeAvailableWithContext(ctx, one, soon...))
	gone := []*string{volume}
	for range [6]int{} {
		gone = append(gone, must(client.CreateVolume(&ec2.CreateVolumeInput{AvailabilityZone: zone, Size: aws.Int64(1), TagSpecifications: tags("volume")})).VolumeId)
	}
	found, pages := 0, 0
	must(0, client.DescribeVolumesPages(&ec2.DescribeVolumesInput{Filters: filter("tag:Name", "by Go"), MaxResults: aws.Int64(5)}, func(page *ec2.DescribeVolumesOutput, _ bool) bool {
		found, pages = found+len(page.Volumes), pages+1
		return true
	}))
	check(found == 7 && pages == 2, found, " volumes in ", pages, " pages")
	_, err := client.CreateVolume(&ec2.CreateVolumeInput{AvailabilityZone: zone, Size: aws.Int64(1), DryRun: aws.Bool(true)})
	refused("DryRunOperation", err)
	_, err = client.DescribeVolumes(&ec2.DescribeVolumesInput{VolumeIds: aws.StringSlice([]string{"vol-0fedcba9876543210"})})
	refused("InvalidVolume.NotFound", err)

	// Attachments.
	must(client.AttachVolume(&ec2.AttachVolumeInput{VolumeId: volume, InstanceId: instance, Device: aws.String("/dev/sdl")}))
	must(0, client.WaitUntilVolumeInUseWithContext(ctx, one, soon...))
	attachment := func() *ec2.VolumeAttachment { return must(client.DescribeVolumes(one)).Volumes[0].Attachments[0] }
	until("attached", func() bool { return *attachment().State == "attached" })
	check(*attachment().Device == "/dev/sdl" && *attachment().InstanceId == *instance, attachment())
	these := &ec2.DescribeInstancesInput{InstanceIds: []*string{instance}}
	must(0, client.WaitUntilInstanceRunningWithContext(ctx, these, soon...))
	must(0, client.WaitUntilInstanceStatusOkWithContext(ctx, &ec2.DescribeInstanceStatusInput{InstanceIds: these.InstanceIds}, soon...))
	mapped := false
	for _, mapping := range must(client.DescribeInstances(these)).Reservations[0].Instances[0].BlockDeviceMappings {
		mapped = mapped || *mapping.Ebs.VolumeId == *volume && *mapping.DeviceName == "/dev/sdl"
	}
	check(mapped, "the instance shows the volume")
	must(0, client.DescribeInstanceStatusPages(&ec2.DescribeInstanceStatusInput{MaxResults: aws.Int64(5)}, func(page *ec2.DescribeInstanceStatusOutput, _ bool) bool { return len(page.InstanceStatuses) > 0 }))
	must(0, client.DescribeInstanceTypesPages(&ec2.DescribeInstanceTypesInput{MaxResults: aws.Int64(5)}, func(page *ec2.DescribeInstanceTypesOutput, _ bool) bool { return len(page.InstanceTypes) > 0 }))
	must(client.ModifyInstanceAttribute(&ec2.ModifyInstanceAttributeInput{InstanceId: instance, BlockDeviceMappings: []*ec2.InstanceBlockDeviceMappingSpecification{{DeviceName: aws.String("/dev/sdl"), Ebs: &ec2.EbsInstanceBlockDeviceSpecification{DeleteOnTermination: aws.Bool(true)}}}}))
	check(*attachment().DeleteOnTermination, "it goes with its instance")
	must(client.DescribeInstanceAttribute(&ec2.DescribeInstanceAttributeInput{InstanceId: instance, Attribute: aws.String("blockDeviceMapping")}))

	// Modifications, status, attributes.
	must(client.ModifyVolume(&ec2.ModifyVolumeInput{VolumeId: volume, Size: aws.Int64(12)}))
	until("grown", func() bool {
		answer := must(client.DescribeVolumesModifications(&ec2.DescribeVolumesModificationsInput{VolumeIds: []*string{volume}}))
		return *answer.VolumesModifications[0].ModificationState == "completed"
	})
	check(*must(client.DescribeVolumes(one)).Volumes[0].Size == 12, "it has grown")
	status := must(client.DescribeVolumeStatus(&ec2.DescribeVolumeStatusInput{VolumeIds: []*string{volume}}))
	check(*status.VolumeStatuses[0].VolumeStatus.Status == "ok", status)
	must(client.ModifyVolumeAttribute(&ec2.ModifyVolumeAttributeInput{VolumeId: volume, AutoEnableIO: &ec2.AttributeBooleanValue{Value: aws.Bool(true)}}))
	auto := must(client.DescribeVolumeAttribute(&ec2.DescribeVolumeAttributeInput{VolumeId: volume, Attribute: aws.String("autoEnableIO")}))
	check(*auto.AutoEnableIO.Value, auto)
	must(client.EnableVolumeIO(&ec2.EnableVolumeIOInput{VolumeId: volume}))

	// Snapshots. CopySnapshot gets a PresignedUrl by itself, which points to AWS.
	snapshot := must(client.CreateSnapshot(&ec2.CreateSnapshotInput{VolumeId: volume, Description: aws.String("Go"), TagSpecifications: tags("snapshot")})).SnapshotId
	set := must(client.CreateSnapshots(&ec2.CreateSnapshotsInput{InstanceSpecification: &ec2.InstanceSpecification{InstanceId: instance}, TagSpecifications: tags("snapshot")}))
	check(len(set.Snapshots) == 1 && *set.Snapshots[0].VolumeId == *volume, set)
	must(0, client.WaitUntilSnapshotCompletedWithContext(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []*string{snapshot, set.Snapshots[0].SnapshotId}}, soon...))
	copied := must(client.CopySnapshot(&ec2.CopySnapshotInput{SourceSnapshotId: snapshot, SourceRegion: aws.String("us-east-1")})).SnapshotId
	must(0, client.WaitUntilSnapshotCompletedWithContext(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []*string{copied}}, soon...))
	named := 0
	must(0, client.DescribeSnapshotsPages(&ec2.DescribeSnapshotsInput{Filters: filter("tag:Name", "by Go"), OwnerIds: aws.StringSlice([]string{"self"}), MaxResults: aws.Int64(5)}, func(page *ec2.DescribeSnapshotsOutput, _ bool) bool {
		named += len(page.Snapshots)
		return true
	}))
	check(named == 2, named, " snapshots")
	permission := []*ec2.CreateVolumePermission{{UserId: aws.String("123456789012")}}
	must(client.ModifySnapshotAttribute(&ec2.ModifySnapshotAttributeInput{SnapshotId: snapshot, CreateVolumePermission: &ec2.CreateVolumePermissionModifications{Add: permission}}))
	shared := func() int {
		input := &ec2.DescribeSnapshotAttributeInput{SnapshotId: snapshot, Attribute: aws.String("createVolumePermission")}
		return len(must(client.DescribeSnapshotAttribute(input)).CreateVolumePermissions)
	}
	check(shared() == 1, "it is shared")
	must(client.ResetSnapshotAttribute(&ec2.ResetSnapshotAttributeInput{SnapshotId: snapshot, Attribute: aws.String("createVolumePermission")}))
	check(shared() == 0, "it is not shared any more")
	restored := must(client.CreateVolume(&ec2.CreateVolumeInput{AvailabilityZone: zone, SnapshotId: snapshot})).VolumeId
	gone = append(gone, restored)
	must(0, client.WaitUntilVolumeAvailableWithContext(ctx, &ec2.DescribeVolumesInput{VolumeIds: []*string{restored}}, soon...))

	// Tags.
	resources := []*string{volume, snapshot, instance}
	must(client.CreateTags(&ec2.CreateTagsInput{Resources: resources, Tags: []*ec2.Tag{{Key: aws.String("job"), Value: aws.String("a+b c%")}}}))
	tagged := must(client.DescribeTags(&ec2.DescribeTagsInput{Filters: filter("key", "job")})).Tags
	check(len(tagged) == 3 && *tagged[0].Value == "a+b c%", tagged)
	must(client.DeleteTags(&ec2.DeleteTagsInput{Resources: resources, Tags: []*ec2.Tag{{Key: aws.String("job")}}}))

	// Around.
	check(len(must(client.DescribeAvailabilityZones(&ec2.DescribeAvailabilityZonesInput{})).AvailabilityZones) == 3, "three zones")
	check(*must(client.DescribeRegions(&ec2.DescribeRegionsInput{})).Regions[0].RegionName == "us-east-1", "the region")
	must(client.DescribeAccountAttributes(&ec2.DescribeAccountAttributesInput{}))
	_, err = client.DescribeVpcs(&ec2.DescribeVpcsInput{})
	refused("UnsupportedOperation", err)

	must(client.DetachVolume(&ec2.DetachVolumeInput{VolumeId: volume}))
	must(0, client.WaitUntilVolumeAvailableWithContext(ctx, one, soon...))
	for _, id := range []*string{snapshot, copied, set.Snapshots[0].SnapshotId} {
		must(client.DeleteSnapshot(&ec2.DeleteSnapshotInput{SnapshotId: id}))
	}
	for _, id := range gone {
		must(client.DeleteVolume(&ec2.DeleteVolumeInput{VolumeId: id}))
	}
	must(0, client.WaitUntilVolumeDeletedWithContext(ctx, one, soon...))
}
